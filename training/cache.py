"""Drawn scenes on disk: shards of pictures, already resized to the model's crop. Layouts come anew from the seeds."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray
from PIL import Image

from training.drawing import draw
from training.scenes import Scene, scene

CROP = 96
SHARD = 1000
_DRAWN_SIDE = 256


def crop_pixels(image: Image.Image, side: int = CROP) -> NDArray[numpy.uint8]:
    """(side, side, 3), resized as the runtime does."""
    return numpy.asarray(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), numpy.uint8)


def drawn_side(index: int) -> int:
    """Pictures come in several sizes, so that blur and noise after resizing vary."""
    return _DRAWN_SIDE + 64 * (index % 4)


def shard_path(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:04d}.npy"


def draw_shard(folder: Path, split: str, number: int) -> None:
    """Draw one shard, unless it is there already."""
    path = shard_path(folder, split, number)
    if path.exists():
        return
    indices = range(number * SHARD, (number + 1) * SHARD)
    pixels = numpy.stack([crop_pixels(draw(scene(split, i), drawn_side(i))) for i in indices])
    unfinished = path.with_suffix(".tmp.npy")
    numpy.save(unfinished, pixels)
    unfinished.rename(path)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Scenes and their pixels (n, side, side, 3)."""

    scenes: list[Scene]
    pixels: NDArray[numpy.uint8]


def load_shard(folder: Path, split: str, number: int) -> Drawn:
    """A shard that `draw_shard` wrote."""
    scenes = [scene(split, i) for i in range(number * SHARD, (number + 1) * SHARD)]
    return Drawn(scenes=scenes, pixels=numpy.load(shard_path(folder, split, number), mmap_mode="r"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw shards of scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--last", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for number in range(options.first, options.last, options.step):
        draw_shard(options.folder, options.split, number)


if __name__ == "__main__":
    main()
