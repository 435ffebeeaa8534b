"""scikit-learn's 1797 scans of handwritten digits as images, in two parts that never change."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits

from edgevlm_runtime.image import Pixels

LABELS = tuple("0123456789")
_EVERY = 5  # the scans are sorted by writer: each fifth one is held out, so that all writers are in both parts
_INK = 16  # the darkest value of a scan


@dataclass(frozen=True, kw_only=True)
class Scans:
    """RGB pixels uint8 (8, 8, 3), white on black, and the digit that each shows, int64 (images,)."""

    images: tuple[Pixels, ...]
    digits: npt.NDArray[np.int64]

    def write(self, folder: Path) -> list[Path]:
        """Each scan as a PNG, named by its place and its digit."""
        paths = []
        for index, (pixels, digit) in enumerate(zip(self.images, self.digits, strict=True)):
            paths.append(folder / f"{index:04d}-{digit}.png")
            Image.fromarray(pixels).save(paths[-1])
        return paths


def training_scans() -> Scans:
    """The 1438 scans to train and calibrate on."""
    return _scans(held_out=False)


def held_out_scans() -> Scans:
    """The 359 scans that decide."""
    return _scans(held_out=True)


def _scans(*, held_out: bool) -> Scans:
    data = load_digits()
    chosen = (np.arange(len(data.target)) % _EVERY == _EVERY - 1) == held_out
    gray = np.rint(data.images[chosen] * (255 / _INK)).astype(np.uint8)
    return Scans(
        images=tuple(np.repeat(image[:, :, None], 3, axis=2) for image in gray),
        digits=data.target[chosen].astype(np.int64),
    )
