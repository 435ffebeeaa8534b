"""Weights of each precision against plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgevlm_export import quantize
from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.quantize import (
    block_scales,
    blocks_of,
    quantize_blocks,
    read_columns,
    read_float32,
    read_slices,
    read_transposed,
)
from edgevlm_export.weights import Weights
from edgevlm_runtime.errors import CheckpointError


def weights_of(tensor: Tensor) -> Weights:
    return Weights({"w": LazyWeight(origin="w", shape=tuple(tensor.shape), read=lambda: tensor)})


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype)


def quantize_slowly(row: npt.NDArray[Any], start: int, size: int) -> tuple[npt.NDArray[Any], float]:
    """One block of one row, value by value."""
    values = [float(v) for v in row[start : start + size]]
    values += [0.0] * (size - len(values))
    scale = np.float32(max(abs(v) for v in values)) / np.float32(127)
    if scale == 0:
        return np.full(size, 128, np.uint8), 0.0
    return np.array([128 + int(np.rint(np.float32(v) / scale)) for v in values], np.uint8), float(scale)


@pytest.mark.parametrize(
    ("n_inputs", "size"),
    [
        (128, 128), (192, 64), (269, 32), (384, 128), (576, 64), (588, 128), (2048, 128), (4304, 128), (8192, 128),
        (32, 32), (33, 64), (1, 32),
    ],
)  # fmt: skip
def test_a_row_takes_the_fewest_bytes(n_inputs: int, size: int) -> None:
    assert blocks_of(n_inputs) == (-(-n_inputs // size), size)


@pytest.mark.parametrize(
    ("shape", "size"), [((7, 128), 128), ((5, 269), 32), ((3, 64), 64), ((4, 384), 128), ((3, 250), 128)]
)
@pytest.mark.parametrize("slice_weights", [1, 300, 1 << 20])
def test_blocks_against_a_loop(
    shape: tuple[int, int], size: int, slice_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_SLICE", slice_weights)
    tensor = draw(*shape)
    tensor[1] = 0
    tensor[2, 3] = 40.0  # an outlier spoils its own block only
    quantized, scales = quantize_blocks(weights_of(tensor), "w"), block_scales(weights_of(tensor), "w")
    blocks = -(-shape[1] // size)
    assert quantized.shape == (shape[0], blocks, size) and quantized.dtype == np.uint8
    assert scales.shape == (shape[0] * blocks,) and scales.dtype == np.float32
    for row in range(shape[0]):
        for block in range(blocks):
            values, scale = quantize_slowly(tensor[row].float().numpy(), block * size, size)
            assert quantized[row, block].tolist() == values.tolist()
            assert scales[row * blocks + block] == pytest.approx(scale, rel=1e-6)


def test_what_is_quantized_comes_back_within_half_a_step() -> None:
    tensor = draw(16, 370)
    quantized, scales = quantize_blocks(weights_of(tensor), "w"), block_scales(weights_of(tensor), "w")
    restored = (quantized.astype(np.float32) - 128) * scales.reshape(16, 3, 1)
    error = np.abs(restored.reshape(16, -1)[:, :370] - tensor.float().numpy())
    assert (error <= np.repeat(scales.reshape(16, 3), 128, axis=1)[:, :370] * 0.501).all()
    assert not restored.reshape(16, -1)[:, 370:].any()


def test_the_source_is_not_changed() -> None:
    tensor = draw(4, 256, dtype=torch.float32)
    before = tensor.clone()
    quantize_blocks(weights_of(tensor), "w")
    block_scales(weights_of(tensor), "w")
    read_transposed(weights_of(tensor), "w", torch.float16)
    assert torch.equal(tensor, before)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, np.float32), (torch.float16, np.float16)])
def test_floats_are_transposed_and_sliced(
    dtype: torch.dtype, name: type[np.floating[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize, "_SLICE", 20)
    tensor = draw(9, 7)
    expected = tensor.float().numpy().astype(name)
    transposed = read_transposed(weights_of(tensor), "w", dtype)
    assert transposed.flags.c_contiguous
    np.testing.assert_array_equal(transposed, expected.T)
    np.testing.assert_array_equal(np.concatenate(list(read_slices(weights_of(tensor), "w", dtype))), expected)
    np.testing.assert_array_equal(read_float32(weights_of(tensor), "w"), tensor.float().numpy())


def test_columns_are_the_checkpoints() -> None:
    tensor = draw(9, 70)
    columns = read_columns(weights_of(tensor), "w", (3, 64))
    assert columns.dtype == np.float32 and columns.flags.c_contiguous
    np.testing.assert_array_equal(columns, np.stack([tensor[:, 3].float().numpy(), tensor[:, 64].float().numpy()]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(value: float) -> None:
    tensor = draw(4, 256)
    tensor[2, 200] = value
    weights = weights_of(tensor)
    for read in (read_float32, block_scales):
        with pytest.raises(CheckpointError, match=r"tensor w: .*finite"):
            read(weights, "w")
    with pytest.raises(CheckpointError, match=r"tensor w: .*finite"):
        read_columns(weights, "w", (1, 200))


def test_what_float16_can_not_hold_is_named() -> None:
    tensor = draw(4, 256)
    tensor[0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"tensor w: .*float16"):
        read_transposed(weights_of(tensor), "w", torch.float16)
    assert read_transposed(weights_of(tensor), "w", torch.float32)[0, 0] == pytest.approx(1e6, rel=1e-2)
