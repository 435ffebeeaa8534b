"""Pixels -> crops as the vision graph wants them: one global crop, and local ones where the model tiles.

Follows the manifest's ImageSpec; dimensions: crops, rows and cols (of crops), side (pixels of a crop).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.manifest import CenterCropSpec, ImageSpec

_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


# Scaled by its shorter side, a longer strip than that would be huge; only its middle is seen.
_MAX_ASPECT = 64


@dataclass(frozen=True, kw_only=True)
class CropGrid:
    """How many local crops an image is cut into, downwards and across."""

    rows: int
    cols: int

    @property
    def n_crops(self) -> int:
        """Crops to encode: the global one, and the local ones unless the only one would equal it."""
        return 1 if self.rows == self.cols == 1 else 1 + self.rows * self.cols


def make_crops(
    pixels: Pixels, spec: ImageSpec, max_crops: int | None = None
) -> tuple[npt.NDArray[np.float32], CropGrid]:
    """Crops float32 (crops, 3, side, side), normalized, and the grid of the local ones.

    Crop 0 is the whole image; the local ones follow row by row. A grid of 1 x 1 has no local crop: it would be the
    global one again. Models that split images instead of tiling them have the whole image last, behind its parts.
    `max_crops` is as in `select_tiling`.
    """
    if spec.tiling is None:
        parts = [prepare_image(part, spec) for part in split(pixels, spec.split)]
        return np.stack(parts), CropGrid(rows=1, cols=1)
    image = Image.fromarray(pixels)
    resample = _FILTERS[spec.resample]
    side = spec.crop_px
    grid = select_tiling(image.height, image.width, spec, max_crops)
    crops = np.empty((grid.n_crops, 3, side, side), np.float32)
    crops[0] = _normalize(np.asarray(image.resize((side, side), resample)), spec)
    if grid.n_crops == 1:
        return crops, grid
    window = _window_px(spec)
    overlap = side - window
    large = np.asarray(image.resize((grid.cols * window + overlap, grid.rows * window + overlap), resample))
    for index in range(grid.rows * grid.cols):
        top, left = index // grid.cols * window, index % grid.cols * window
        crops[1 + index] = _normalize(large[top : top + side, left : left + side], spec)
    return crops, grid


def split(pixels: Pixels, n: int) -> list[Pixels]:
    """An image (height, width, 3) in n x n equal parts row by row, and as a whole; only as a whole where n is 1.

    What is left of a side that n does not divide is in no part.
    """
    if n == 1:
        return [pixels]
    rows, cols = (_shares(side, n) for side in pixels.shape[:2])
    return [*(pixels[row, col] for row in rows for col in cols), pixels]


def _shares(length: int, n: int) -> list[slice]:
    """Where n equal shares of a side are; shares of a side shorter than n are one pixel each, some of them the same."""
    share = max(1, length // n)
    starts = [min(index * share, length - share) for index in range(n)]
    return [slice(start, start + share) for start in starts]


def select_tiling(height: int, width: int, spec: ImageSpec, max_crops: int | None = None) -> CropGrid:
    """The grid of local crops for an image of that size, by the rule that the models were trained with.

    The model's own limit of crops is exceeded for long strips (1 x 15 for 400 x 10000 pixels and 12 crops), as in
    the reference; a lower `max_crops` never is.

    Raises:
        InvalidOption: `max_crops` is below 1.
    """
    if max_crops is not None and max_crops < 1:
        raise InvalidOption(f"max_crops must be at least 1, not {max_crops}")
    if spec.tiling is None:
        return CropGrid(rows=1, cols=1)
    limit = spec.tiling.max_crops if max_crops is None else min(max_crops, spec.tiling.max_crops)
    window = _window_px(spec)
    overlap = spec.crop_px - window
    rows, cols = _reference_tiling(height - overlap, width - overlap, window, limit)
    if limit < spec.tiling.max_crops:
        rows, cols = min(rows, max(1, limit // cols)), min(cols, limit)
    return CropGrid(rows=rows, cols=cols)


def _reference_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """Rows and columns for a height and width without margins; the arithmetic is the reference's, float by float."""
    if height <= window or width <= window:
        return 1, 1
    min_rows, min_cols = math.ceil(height / window), math.ceil(width / window)
    if min_rows * min_cols > max_crops:
        ratio = math.sqrt(max_crops / (min_rows * min_cols))
        return max(1, math.floor(min_rows * ratio)), max(1, math.floor(min_cols * ratio))
    rows = max(math.floor(math.sqrt(max_crops * height / width)), min_rows)
    cols = max(math.floor(math.sqrt(max_crops * width / height)), min_cols)
    if rows * cols > max_crops:
        if cols > rows:
            cols = max_crops // rows
        else:
            rows = max_crops // cols
    return max(1, rows), max(1, cols)


def _window_px(spec: ImageSpec) -> int:
    """Pixels that a crop shares with no neighbor."""
    assert spec.tiling is not None
    return spec.crop_px - 2 * spec.tiling.margin_patches * spec.tiling.patch_px


def prepare_image(pixels: Pixels, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """One square float32 (3, side, side), normalized: the whole image, or its middle where the manifest says so.

    All bits are those of torchvision's and transformers' transforms on PIL images.
    """
    image = Image.fromarray(pixels)
    if spec.center_crop is None:
        square = image.resize((spec.crop_px, spec.crop_px), _FILTERS[spec.resample])
    else:
        square = _center_square(image, spec, spec.center_crop)
    return _normalize(np.asarray(square), spec)


def _center_square(image: Image.Image, spec: ImageSpec, crop: CenterCropSpec) -> Image.Image:
    """The square of `crop_px` in the middle, after the shorter side was scaled to `shortest_px`."""
    shortest = min(image.size)
    width, height = (min(side, _MAX_ASPECT * shortest) for side in image.size)
    if (width, height) != image.size:
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    size = (crop.shortest_px * width // shortest, crop.shortest_px * height // shortest)
    resized = image.resize(size, _FILTERS[spec.resample])
    left, top = (_margin(side - spec.crop_px, crop) for side in size)
    return resized.crop((left, top, left + spec.crop_px, top + spec.crop_px))


def _margin(both: int, crop: CenterCropSpec) -> int:
    """Pixels left out before the square, of those on both sides of it."""
    return both // 2 if crop.rounding == "floor" else round(both / 2)


def _normalize(pixels: Pixels, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """(side, side, 3) uint8 to (3, side, side) float32."""
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    return values.transpose(2, 0, 1)
