"""Crops against the published tiling table and a brute-force reading of the rules."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.manifest import ImageSpec, TilingSpec
from edgevlm_runtime.preprocess import CropGrid, make_crops, select_tiling

HALF = (0.5, 0.5, 0.5)
LARGE = ImageSpec(
    crop_px=378, resample="lanczos", mean=HALF, std=HALF, tiling=TilingSpec(patch_px=14, margin_patches=4, max_crops=12)
)
SMALL = ImageSpec(
    crop_px=48,
    resample="lanczos",
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    tiling=TilingSpec(patch_px=8, margin_patches=1, max_crops=6),
)

# (width, height) -> rows, cols -> resized width, height: measured with the reference implementation.
TABLE = [
    ((378, 378), (1, 1), (378, 378)),
    *(((side, side), (3, 3), (910, 910)) for side in (379, 400, 512, 2000)),
    *(
        (size, (2, 4), (1176, 644))
        for size in ((640, 480), (800, 600), (911, 600), (1280, 720), (1920, 1080), (4000, 3000))
    ),
    ((1024, 768), (3, 4), (1176, 910)),
    *((size, (4, 2), (644, 1176)) for size in ((480, 640), (1080, 1920))),
    *((size, (1, 8), (2240, 378)) for size in ((3000, 400), (5000, 700))),
    *((size, (1, 1), (378, 378)) for size in ((1000, 200), (300, 2000), (3000, 300))),
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def reference_tiling(height: int, width: int, window: int, max_crops: int) -> tuple[int, int]:
    """The reference's function as its authors wrote it, on sizes without margins."""
    if height <= window or width <= window:
        return (1, 1)
    min_h = math.ceil(height / window)
    min_w = math.ceil(width / window)
    if min_h * min_w > max_crops:
        ratio = math.sqrt(max_crops / (min_h * min_w))
        return (max(1, math.floor(min_h * ratio)), max(1, math.floor(min_w * ratio)))
    h_tiles = math.floor(math.sqrt(max_crops * height / width))
    w_tiles = math.floor(math.sqrt(max_crops * width / height))
    h_tiles = max(h_tiles, min_h)
    w_tiles = max(w_tiles, min_w)
    if h_tiles * w_tiles > max_crops:
        if w_tiles > h_tiles:
            w_tiles = math.floor(max_crops / h_tiles)
        else:
            h_tiles = math.floor(max_crops / w_tiles)
    return (max(1, h_tiles), max(1, w_tiles))


@pytest.mark.parametrize(("size", "grid", "resized"), TABLE)
def test_published_table(size: tuple[int, int], grid: tuple[int, int], resized: tuple[int, int]) -> None:
    width, height = size
    assert select_tiling(height, width, LARGE) == CropGrid(rows=grid[0], cols=grid[1])
    assert (grid[1] * 266 + 112, grid[0] * 266 + 112) == resized


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_tiling_is_the_references(height: int, width: int) -> None:
    grid = select_tiling(height, width, LARGE)
    assert (grid.rows, grid.cols) == reference_tiling(height - 112, width - 112, 266, 12)
    assert select_tiling(height, width, LARGE, 12) == select_tiling(height, width, LARGE, 99) == grid


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 100_000), st.integers(1, 100_000), st.integers(1, 11))
def test_lower_max_crops_is_never_exceeded(height: int, width: int, max_crops: int) -> None:
    grid = select_tiling(height, width, LARGE, max_crops)
    rows, cols = reference_tiling(height - 112, width - 112, 266, max_crops)
    assert grid.rows * grid.cols <= max_crops
    if rows * cols <= max_crops:
        assert (grid.rows, grid.cols) == (rows, cols)


def test_one_crop_is_the_global_one() -> None:
    crops, grid = make_crops(noise(900, 700), LARGE, 1)
    assert grid == CropGrid(rows=1, cols=1)
    assert crops.shape == (1, 3, 378, 378)


@pytest.mark.parametrize("max_crops", [0, -3])
def test_max_crops_below_one(max_crops: int) -> None:
    with pytest.raises(InvalidOption, match="max_crops"):
        make_crops(noise(10, 10), SMALL, max_crops)


def normalized(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    values: np.ndarray = (np.asarray(image, np.float64) / 255 - np.array(spec.mean)) / np.array(spec.std)
    return values.transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(60, 90), (200, 64), (49, 49), (123, 77)])
@pytest.mark.parametrize("resample", ["lanczos", "bicubic", "bilinear"])
def test_crops_against_brute_force(size: tuple[int, int], resample: Literal["lanczos", "bicubic", "bilinear"]) -> None:
    spec = dataclasses.replace(SMALL, resample=resample)
    pixels = noise(*size)
    crops, grid = make_crops(pixels, spec)
    assert grid.rows * grid.cols > 1
    assert crops.dtype == np.float32 and crops.flags.c_contiguous
    assert crops.shape == (1 + grid.rows * grid.cols, 3, 48, 48)
    method = Image.Resampling[resample.upper()]
    np.testing.assert_allclose(crops[0], normalized(Image.fromarray(pixels).resize((48, 48), method), spec), atol=2e-6)
    large = Image.fromarray(pixels).resize((grid.cols * 32 + 16, grid.rows * 32 + 16), method)
    for row in range(grid.rows):
        for col in range(grid.cols):
            box = (col * 32, row * 32, col * 32 + 48, row * 32 + 48)
            wanted = normalized(large.crop(box), spec)
            np.testing.assert_allclose(crops[1 + row * grid.cols + col], wanted, atol=2e-6)


def test_single_tile_is_returned_once() -> None:
    crops, grid = make_crops(noise(300, 2000), LARGE)
    assert (grid, crops.shape) == (CropGrid(rows=1, cols=1), (1, 3, 378, 378))


def test_no_tiling_gives_the_global_crop_only() -> None:
    spec = dataclasses.replace(LARGE, tiling=None)
    crops, grid = make_crops(noise(900, 700), spec)
    assert (grid, crops.shape) == (CropGrid(rows=1, cols=1), (1, 3, 378, 378))
    np.testing.assert_array_equal(crops[0], make_crops(noise(900, 700), LARGE)[0][0])


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (2, 3)])
def test_thin_images(size: tuple[int, int]) -> None:
    crops, _ = make_crops(np.full((*size, 3), 255, np.uint8), LARGE)
    np.testing.assert_array_equal(crops, np.ones_like(crops))
