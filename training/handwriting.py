"""Handwritten digits of scikit-learn's `load_digits` (8 x 8, 1797 samples) as masks of any size."""

from __future__ import annotations

from functools import lru_cache
from random import Random

import numpy
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

_DETAIL = 64
_INK = 90
_SPLIT_OF = ("train",) * 8 + ("val", "test")


@lru_cache(maxsize=1)
def _samples() -> tuple[NDArray[numpy.uint8], NDArray[numpy.int64]]:
    digits = load_digits()
    return (digits.images * (255 / 16)).astype(numpy.uint8), digits.target.astype(numpy.int64)


@lru_cache(maxsize=64)
def of(digit: int, split: str) -> tuple[int, ...]:
    """Numbers of all samples of a digit that belong to a split."""
    _, labels = _samples()
    return tuple(i for i in range(len(labels)) if labels[i] == digit and _SPLIT_OF[i % len(_SPLIT_OF)] == split)


def choose(rng: Random, digit: int, split: str) -> int:
    """Number of a sample of `digit` that belongs to the split."""
    return rng.choice(of(digit, split))


@lru_cache(maxsize=2048)
def mask(sample: int) -> Image.Image:
    """The ink of a sample, cut to its box: 8-bit gray, sharpened enough to have edges."""
    images, _ = _samples()
    smooth = Image.fromarray(images[sample]).resize((_DETAIL, _DETAIL), Image.Resampling.BICUBIC)
    ink = smooth.point([max(0, min(255, (value - 60) * 3)) for value in range(256)])
    box = ink.point([255 * (value > _INK) for value in range(256)]).getbbox()
    return ink.crop(box)


def aspect(sample: int) -> float:
    """Width / height of the ink."""
    width, height = mask(sample).size
    return width / height
