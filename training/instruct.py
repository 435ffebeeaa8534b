"""Second phase: everything end to end on packed exchanges, with a little dense supervision left."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgevlm_export.modules.moondream2 import Moondream2
from training.answering import hidden_states, losses
from training.batches import IGNORED, Layouts, Packed, random_batch
from training.data import Scenes
from training.dense import DenseHeads, dense_loss
from training.loop import LoopOptions, train
from training.model import normalized
from training.speed import fast_training

_LENGTH = 160
_HELD_OUT_IMAGES = 192


class Answering(nn.Module):
    """The whole model with the dense heads of the first phase."""

    def __init__(self, model: Moondream2, heads: DenseHeads) -> None:
        super().__init__()
        self.model, self.heads = model, heads


def instruct(
    answering: Answering, tokenizer: Tokenizer, cache: Path, options: LoopOptions, report: Callable[[str], None]
) -> None:
    """Train the model to answer."""
    scenes, held_out, layouts = Scenes(cache, "train"), Scenes(cache, "val"), Layouts(tokenizer)
    rng, choices = numpy.random.default_rng(), Random()
    steps = 0

    def total(progress: float) -> Tensor:
        nonlocal steps
        steps += 1
        if steps % 300 == 0:
            scenes.grow(2)
            report(f"{progress:.2f} of {options.minutes} min: {score(answering, held_out, layouts)}")
        batch = scenes.sample(rng, options.batch_size)
        packed = random_batch(layouts, batch.scenes, choices, _LENGTH)
        with fast_training():
            features = answering.model.vision.encode(normalized(batch.pixels))
            answered = losses(answering.model, features, packed).total
            seen = dense_loss(answering.heads, features, batch.labels)[0]
        return answered + (0.3 - 0.2 * progress) * seen

    train(answering, options, total, report)
    report(f"averaged weights: {score(answering, held_out, layouts)}")


@torch.no_grad()
def score(answering: Answering, held_out: Scenes, layouts: Layouts) -> str:
    """Right answers by topic: greedy decoding is right exactly when each token follows from the right ones before."""
    batch = held_out.sample(numpy.random.default_rng(0), _HELD_OUT_IMAGES)
    packed = random_batch(layouts, batch.scenes, Random(0), _LENGTH)
    with fast_training():
        features = answering.model.vision.encode(normalized(batch.pixels))
        hidden = hidden_states(answering.model, features, packed)
        predicted = answering.model.text.logits(hidden).argmax(-1)
        coordinates = answering.model.region.decode_coordinate(hidden).argmax(-1) / 128
    wrong = (predicted != packed.tokens) & (packed.tokens != IGNORED)
    given = packed.regions.isnan().logical_not()
    is_coordinate = given[..., 0] & ~given[..., 1]
    error = (coordinates - packed.regions[..., 0])[is_coordinate].abs()
    by_topic = " ".join(f"{topic} {value:.2f}" for topic, value in sorted(shares(packed, wrong).items()))
    return f"{by_topic} | coordinate error {float(error.mean()):.3f}"


def shares(packed: Packed, wrong: Tensor) -> dict[str, float]:
    """Right answers by topic; `wrong` (images, length) are positions where a wrong token was predicted."""
    outcomes: dict[str, list[bool]] = defaultdict(list)
    for image, said in enumerate(packed.exchanges):
        failed = set(packed.segments[image][wrong[image]].tolist())
        for segment, one in enumerate(said):
            outcomes[one.topic].append(segment not in failed)
    return {topic: sum(right) / len(right) for topic, right in outcomes.items()}
