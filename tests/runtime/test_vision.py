"""Stitching and pooling against brute force and torch, and the tower on real graphs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.errors import EngineError
from edgevlm_runtime.manifest import ImageSpec, TilingSpec
from edgevlm_runtime.preprocess import CropGrid, make_crops
from edgevlm_runtime.vision import VisionTower, adaptive_average_pool, stitch

HALF = (0.5, 0.5, 0.5)
SPEC = ImageSpec(
    crop_px=48, resample="lanczos", mean=HALF, std=HALF, tiling=TilingSpec(patch_px=8, margin_patches=1, max_crops=6)
)
PATCHES, ENC_DIM, DIM = 36, 10, 12
Port: TypeAlias = tuple[str, Sequence[int | str]]  # name and shape


def brute_stitch(tiles: np.ndarray, rows: int, cols: int, margin: int) -> np.ndarray:
    """Patch by patch: of two overlapping tiles the upper or left one ends `margin` patches before its border."""
    side = tiles.shape[1]
    step = side - 2 * margin
    height, width = rows * step + 2 * margin, cols * step + 2 * margin
    joined = np.empty((height, width, tiles.shape[-1]), np.float32)
    for y in range(height):
        for x in range(width):
            row = min(max((y - margin) // step, 0), rows - 1)
            col = min(max((x - margin) // step, 0), cols - 1)
            joined[y, x] = tiles[row * cols + col, y - row * step, x - col * step]
    return joined


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (1, 2), (2, 1), (3, 4), (1, 8)])
@pytest.mark.parametrize(("side", "margin"), [(27, 4), (6, 1), (5, 0), (5, 2)])
def test_stitch(rows: int, cols: int, side: int, margin: int) -> None:
    tiles = np.random.default_rng(0).standard_normal((rows * cols, side, side, 3), np.float32)
    got = stitch(tiles, CropGrid(rows=rows, cols=cols), margin)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, brute_stitch(tiles, rows, cols, margin))


def test_stitch_of_crops_is_the_large_image() -> None:
    """Patches cut from one map come back as that map."""
    whole = np.random.default_rng(0).standard_normal((3 * 19 + 8, 2 * 19 + 8, 2), np.float32)
    tiles = [whole[row * 19 : row * 19 + 27, col * 19 : col * 19 + 27] for row in range(3) for col in range(2)]
    np.testing.assert_array_equal(stitch(np.stack(tiles), CropGrid(rows=3, cols=2), 4), whole)


@pytest.mark.parametrize("side", [27, 6, 1])
@pytest.mark.parametrize("size", [(27, 27), (46, 84), (65, 65), (160, 27), (28, 53)])
def test_pool_is_torchs(size: tuple[int, int], side: int) -> None:
    features = np.random.default_rng(0).standard_normal((*size, 5), np.float32)
    wanted = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(features).permute(2, 0, 1), side).permute(1, 2, 0)
    got = adaptive_average_pool(features, side)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6)


def test_pool_against_brute_force() -> None:
    features = np.random.default_rng(0).standard_normal((46, 31, 3)).astype(np.float32)
    got = adaptive_average_pool(features, 7)
    for i in range(7):
        for j in range(7):
            rows = slice(int(np.floor(i * 46 / 7)), int(np.ceil((i + 1) * 46 / 7)))
            cols = slice(int(np.floor(j * 31 / 7)), int(np.ceil((j + 1) * 31 / 7)))
            np.testing.assert_allclose(got[i, j], features[rows, cols].mean((0, 1)), atol=1e-6)


def test_pool_of_its_own_size_is_identity() -> None:
    features = np.random.default_rng(0).standard_normal((27, 27, 4), np.float32)
    np.testing.assert_array_equal(adaptive_average_pool(features, 27), features)


def graph(path: Path, nodes: list[onnx.NodeProto], source: Port, target: Port, weights: dict[str, np.ndarray]) -> Path:
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [helper.make_tensor_value_info(source[0], TensorProto.FLOAT, source[1])]
    outputs = [helper.make_tensor_value_info(target[0], TensorProto.FLOAT, target[1])]
    body = helper.make_graph(nodes, path.stem, inputs, outputs, initializer=arrays)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


WEIGHTS: dict[str, np.ndarray] = {
    "patch": np.random.default_rng(1).standard_normal((ENC_DIM, 3, 8, 8), np.float32) / 10,
    "project": np.random.default_rng(2).standard_normal((2 * ENC_DIM, DIM), np.float32),
}


def tower(folder: Path, spec: ImageSpec = SPEC) -> VisionTower:
    """A convolution as the encoder, a matrix as the projection."""
    nodes = [
        helper.make_node("Conv", ["crops", "patch"], ["map"], strides=[8, 8]),
        helper.make_node("Reshape", ["map", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["features"], perm=[0, 2, 1]),
    ]
    constants = {"patch": WEIGHTS["patch"], "flat": np.array([0, ENC_DIM, -1])}
    source: Port = ("crops", ["crops", 3, 48, 48])
    target: Port = ("features", ["crops", PATCHES, ENC_DIM])
    vision = graph(folder / "vision.onnx", nodes, source, target, constants)
    width = 2 * ENC_DIM if spec.tiling else ENC_DIM
    nodes = [helper.make_node("MatMul", ["features", "project"], ["tokens"])]
    source, target = ("features", [1, PATCHES, width]), ("tokens", [1, PATCHES, DIM])
    project = graph(folder / "project.onnx", nodes, source, target, {"project": WEIGHTS["project"][:width]})
    engine = open_engine("onnxruntime", threads=1)
    return VisionTower(spec, engine.open(vision), engine.open(project))


def expected(pixels: np.ndarray, max_crops: int | None = None) -> np.ndarray:
    """The same in torch, all crops in one batch."""
    crops, grid = make_crops(pixels, SPEC, max_crops)
    features = torch.nn.functional.conv2d(torch.from_numpy(crops), torch.from_numpy(WEIGHTS["patch"]), stride=8)
    local = features[:1]
    if len(crops) > 1:
        joined = brute_stitch(features[1:].permute(0, 2, 3, 1).numpy(), grid.rows, grid.cols, 1)
        local = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(joined).permute(2, 0, 1)[None], 6)
    both = torch.cat([features[:1], local], 1).flatten(2).transpose(1, 2)[0]
    return (both @ torch.from_numpy(WEIGHTS["project"])).numpy()


@pytest.mark.parametrize(("size", "max_crops"), [((100, 150), None), ((100, 150), 1), ((60, 200), 3), ((20, 30), None)])
def test_tokens(tmp_path: Path, size: tuple[int, int], max_crops: int | None) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    tokens = tower(tmp_path).encode(pixels, max_crops)
    assert tokens.shape == (PATCHES, DIM) and tokens.dtype == np.float32
    np.testing.assert_allclose(tokens, expected(pixels, max_crops), atol=1e-4)


def test_global_features_do_not_depend_on_other_crops(tmp_path: Path) -> None:
    """With a projection that ignores local features the same bits come out however many crops there are."""
    pixels = np.random.default_rng(3).integers(0, 256, (100, 150, 3), np.uint8)
    eye = np.vstack([np.eye(ENC_DIM, DIM, dtype=np.float32), np.zeros((ENC_DIM, DIM), np.float32)])
    kept = dict(WEIGHTS)
    try:
        WEIGHTS["project"] = eye
        both = tower(tmp_path)
    finally:
        WEIGHTS.update(kept)
    np.testing.assert_array_equal(both.encode(pixels), both.encode(pixels, 1))


def test_without_tiling_features_go_on_alone(tmp_path: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (100, 150, 3), np.uint8)
    tokens = tower(tmp_path, dataclasses.replace(SPEC, tiling=None)).encode(pixels)
    crops, _ = make_crops(pixels, SPEC, 1)
    features = torch.nn.functional.conv2d(torch.from_numpy(crops), torch.from_numpy(WEIGHTS["patch"]), stride=8)
    wanted = features.flatten(2).transpose(1, 2)[0] @ torch.from_numpy(WEIGHTS["project"][:ENC_DIM])
    np.testing.assert_allclose(tokens, wanted.numpy(), atol=1e-4)


def test_encoding_can_be_followed_and_ended(tmp_path: Path) -> None:
    pixels = np.zeros((100, 150, 3), np.uint8)
    n_crops = len(make_crops(pixels, SPEC)[0])
    seen = []
    tower(tmp_path).encode(pixels, before_crop=lambda index, count: seen.append((index, count)))
    assert seen == [(index, n_crops) for index in range(n_crops)]

    def stop(index: int, _: int) -> None:
        if index == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        tower(tmp_path).encode(pixels, before_crop=stop)


def test_wrong_number_of_patches(tmp_path: Path) -> None:
    assert SPEC.tiling is not None
    other = dataclasses.replace(SPEC, tiling=dataclasses.replace(SPEC.tiling, patch_px=12))
    with pytest.raises(EngineError, match="36 patches where 4 x 4"):
        tower(tmp_path, other).encode(np.zeros((10, 10, 3), np.uint8))
