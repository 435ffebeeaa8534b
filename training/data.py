"""All drawn scenes in memory-mapped shards, sampled in random batches."""

from __future__ import annotations

from copy import copy
from pathlib import Path

import numpy
import torch
from numpy.random import Generator
from torch import Tensor

from training.cache import SHARD, load_shard
from training.dense import DenseLabels
from training.scenes import Scene


class Shard:
    """One shard with its labels."""

    def __init__(self, folder: Path, split: str, number: int) -> None:
        drawn = load_shard(folder, split, number)
        self.scenes, self.pixels = drawn.scenes, drawn.pixels
        self.labels = DenseLabels(drawn.scenes)


class Batch:
    """Scenes, pixels (n, side, side, 3) and dense labels of a batch."""

    def __init__(self, parts: list[tuple[Shard, int]]) -> None:
        self.scenes: list[Scene] = [shard.scenes[i] for shard, i in parts]
        self.pixels: Tensor = torch.from_numpy(numpy.stack([shard.pixels[i] for shard, i in parts]))
        self.labels = (
            torch.stack([shard.labels.boxes[i] for shard, i in parts]),
            torch.stack([shard.labels.classes[i] for shard, i in parts]),
            torch.stack([shard.labels.image[i] for shard, i in parts]),
        )

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        moved = copy(self)
        moved.pixels = self.pixels.to(device)
        boxes, classes, image = (label.to(device) for label in self.labels)
        moved.labels = (boxes, classes, image)
        return moved


class Scenes:
    """The shards of a split that are on disk; new ones are picked up as they appear."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.shards: list[Shard] = []
        self.grow()

    def grow(self, most: int = 1000) -> None:
        """Load up to `most` more shards."""
        for number in range(len(self.shards), len(self.shards) + most):
            if not (self.folder / f"{self.split}-{number:04d}.npy").exists():
                return
            self.shards.append(Shard(self.folder, self.split, number))

    def sample(self, rng: Generator, size: int) -> Batch:
        """A random batch."""
        picks = rng.integers(0, len(self.shards) * SHARD, size)
        return Batch([(self.shards[pick // SHARD], pick % SHARD) for pick in picks.tolist()])
