"""First phase: the image encoder alone learns what covers each patch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from edgevlm_export.modules.moondream2 import Moondream2
from training.data import Scenes
from training.dense import CLASSES, IMAGE_CLASSES, DenseHeads, dense_loss
from training.loop import LoopOptions, train
from training.model import normalized
from training.speed import fast_training

_HEAD_NAMES = ("rank", *CLASSES, *IMAGE_CLASSES)


class Seeing(nn.Module):
    """An image encoder with its dense heads; `see` is how it takes pixels (n, side, side, 3) to features of patches."""

    def __init__(self, vision: nn.Module, heads: DenseHeads, see: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.vision, self.heads, self.see = vision, heads, see


def pretrain(
    model: Moondream2, heads: DenseHeads, cache: Path, options: LoopOptions, report: Callable[[str], None]
) -> None:
    """Train `model.vision` (but not its projection) and the heads."""

    def see(pixels: Tensor) -> Tensor:
        return model.vision.encode(normalized(pixels))

    model.vision.proj_mlp.requires_grad_(False)
    teach_seeing(Seeing(model.vision, heads, see), cache, options, report)
    model.vision.proj_mlp.requires_grad_(True)


def teach_seeing(seeing: Seeing, cache: Path, options: LoopOptions, report: Callable[[str], None]) -> None:
    """Train an image encoder to say what covers each patch."""
    scenes, held_out = Scenes(cache, "train"), Scenes(cache, "val")
    rng = numpy.random.default_rng()
    steps = 0

    def losses(progress: float) -> Tensor:
        nonlocal steps
        steps += 1
        if steps % 20 == 0:
            scenes.grow(1)
        if steps % 300 == 0:
            scores = score(seeing, held_out, options.device)
            report(f"{progress:.2f} of {options.minutes} min, {len(scenes.shards)} shards: {scores}")
        batch = scenes.sample(rng, options.batch_size).to(options.device)
        with fast_training(options.device):
            return dense_loss(seeing.heads, seeing.see(batch.pixels), batch.labels)[0]

    train(seeing, options, losses, report)
    report(f"image encoder, averaged weights: {score(seeing, held_out, options.device)}")


@torch.no_grad()
def score(seeing: Seeing, held_out: Scenes, device: torch.device) -> str:
    """Accuracy of each head on held-out scenes, for the log."""
    batch = held_out.sample(numpy.random.default_rng(0), 256).to(device)
    with fast_training(device):
        loss, right = dense_loss(seeing.heads, seeing.see(batch.pixels), batch.labels)
    scores = " ".join(f"{name} {value:.3f}" for name, value in zip(_HEAD_NAMES, right.tolist(), strict=True))
    return f"loss {float(loss):.3f} {scores}"
