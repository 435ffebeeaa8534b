"""The two phases: the image encoder says what covers each patch, then the whole model answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from training.answering import token_loss
from training.batches import IGNORED, Packed, random_batch
from training.data import Batch, Scenes
from training.dense import DenseHeads, dense_loss
from training.instruct import shares
from training.loop import LoopOptions, train
from training.pretrain import Seeing, teach_seeing
from training.proofs.asking import Teacher
from training.proofs.learner import Learner
from training.proofs.sequences import BundleLayouts
from training.speed import fast_training

_HELD_OUT_IMAGES = 192
_BATCHES_PER_SHARD = 50
_SCORED_EVERY = 200


class Answering(nn.Module):
    """A model with the dense heads of its image encoder."""

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner
        self.heads = DenseHeads(learner.vision_dim)

    @property
    def seeing(self) -> Seeing:
        """The image encoder by itself."""
        return Seeing(self.learner.vision, self.heads, self.learner.see)


def learn_to_see(answering: Answering, cache: Path, options: LoopOptions, report: Callable[[str], None]) -> None:
    """First phase."""
    teach_seeing(answering.seeing, cache, options, report)


def take_encoder(answering: Answering, checkpoint: Path) -> None:
    """The averaged weights of an image encoder and its heads from the first phase of another run."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["average"]
    answering.seeing.load_state_dict(state)


class Lessons(IterableDataset[tuple[Batch, Packed]]):
    """Endless random batches of images with exchanges about them, asked in a model's own prompts."""

    def __init__(self, cache: Path, learner: Learner, layouts: BundleLayouts, batch_size: int) -> None:
        self._cache, self._layouts, self._batch_size = cache, layouts, batch_size
        self._length = learner.text_length
        self._teacher = Teacher(list(layouts.spec.captions))
        self.before_image = torch.tensor(layouts.spec.before_image)

    def __iter__(self) -> Iterator[tuple[Batch, Packed]]:
        scenes = Scenes(self._cache, "train")
        rng, choices = numpy.random.default_rng(), Random()
        for number in count(1):
            if number % _BATCHES_PER_SHARD == 0:
                scenes.grow(1)
            yield self._lesson(scenes.sample(rng, self._batch_size), choices)

    def held_out(self) -> tuple[Batch, Packed]:
        """Always the same batch, of images that are not learned."""
        scenes = Scenes(self._cache, "val")
        return self._lesson(scenes.sample(numpy.random.default_rng(0), _HELD_OUT_IMAGES), Random(0))

    def _lesson(self, batch: Batch, choices: Random) -> tuple[Batch, Packed]:
        return batch, random_batch(self._layouts, batch.scenes, choices, self._length, self._teacher)


def learn_to_answer(
    answering: Answering, lessons: Lessons, n_workers: int, options: LoopOptions, report: Callable[[str], None]
) -> None:
    """Second phase, with a little of the first one's supervision left; workers prepare batches beside it."""
    batches = iter(DataLoader(lessons, batch_size=None, num_workers=n_workers))
    learner, device = answering.learner, options.device
    exam, asked = lessons.held_out()
    exam, asked, before = exam.to(device), asked.to(device), lessons.before_image.to(device)
    steps = 0

    def total(progress: float) -> Tensor:
        nonlocal steps
        steps += 1
        if steps % _SCORED_EVERY == 0:
            report(f"{progress:.2f} of {options.minutes:.0f} min: {score()}")
        batch, packed = next(batches)
        batch, packed = batch.to(device), packed.to(device)
        with fast_training(device):
            features = learner.encode(batch.pixels)
            hidden = learner.hidden(features, packed, before)
            answered = token_loss(learner.logits(hidden[packed.tokens != IGNORED]), packed)
            seen = dense_loss(answering.heads, learner.patches(features), batch.labels)[0]
        return answered + (0.3 - 0.2 * progress) * seen

    @torch.no_grad()
    def score() -> str:
        """Right answers by topic: greedy decoding is right exactly when each token follows from the right ones."""
        with fast_training(device):
            hidden = learner.hidden(learner.encode(exam.pixels), asked, before)
            predicted = learner.logits(hidden).argmax(-1)
        wrong = (predicted != asked.tokens) & (asked.tokens != IGNORED)
        return " ".join(f"{topic} {value:.2f}" for topic, value in sorted(shares(asked, wrong).items()))

    train(answering, options, total, report)
    report(f"averaged weights: {score()}")
