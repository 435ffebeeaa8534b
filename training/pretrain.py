"""First phase: the image encoder alone learns what covers each patch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from edgevlm_export.modules.moondream2 import Moondream2, Vision
from training.data import Scenes
from training.dense import CLASSES, IMAGE_CLASSES, DenseHeads, dense_loss
from training.loop import LoopOptions, train
from training.model import normalized
from training.speed import fast_training

_BATCH = 32
_HEAD_NAMES = ("rank", *CLASSES, *IMAGE_CLASSES)


class Seeing(nn.Module):
    """The image encoder with its dense heads."""

    def __init__(self, vision: Vision, heads: DenseHeads) -> None:
        super().__init__()
        self.vision, self.heads = vision, heads


def pretrain(
    model: Moondream2, heads: DenseHeads, cache: Path, options: LoopOptions, report: Callable[[str], None]
) -> None:
    """Train `model.vision` (but not its projection) and the heads."""
    for parameter in model.vision.proj_mlp.parameters():
        parameter.requires_grad_(False)
    scenes, held_out = Scenes(cache, "train"), Scenes(cache, "val")
    rng = numpy.random.default_rng()
    seeing = Seeing(model.vision, heads)
    steps = 0

    def losses(progress: float) -> Tensor:
        nonlocal steps
        steps += 1
        if steps % 20 == 0:
            scenes.grow(1)
        if steps % 300 == 0:
            report(f"{progress:.2f} of {options.minutes} min, {len(scenes.shards)} shards: {score(seeing, held_out)}")
        batch = scenes.sample(rng, _BATCH)
        with fast_training():
            features = seeing.vision.encode(normalized(batch.pixels))
            return dense_loss(seeing.heads, features, batch.labels)[0]

    train(seeing, options, losses, report)
    report(f"image encoder, averaged weights: {score(seeing, held_out)}")
    for parameter in model.vision.proj_mlp.parameters():
        parameter.requires_grad_(True)


@torch.no_grad()
def score(seeing: Seeing, held_out: Scenes) -> str:
    """Accuracy of each head on held-out scenes, for the log."""
    batch = held_out.sample(numpy.random.default_rng(0), 256)
    with fast_training():
        features = seeing.vision.encode(normalized(batch.pixels))
        loss, right = dense_loss(seeing.heads, features, batch.labels)
    scores = " ".join(f"{name} {value:.3f}" for name, value in zip(_HEAD_NAMES, right.tolist(), strict=True))
    return f"loss {float(loss):.3f} {scores}"
