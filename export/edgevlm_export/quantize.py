"""Step 5: checkpoint matrices to the arrays of a precision.

A matrix is worked on in slices of its rows, so that the memory needed is little more than its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgevlm_export.weights import Weights
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import Precision

if TYPE_CHECKING:
    from edgevlm_export.families.family import GraphRequest  # families use this module

INT4_ROLES = ("prefuse", "decoder")
_BLOCK_SIZES = (128, 64, 32)  # weights that share one scale; engines multiply these about equally fast
_SCALE_BYTES = 4
_ZERO = 128  # what 0 is stored as: MatMulNBits reads uint8 around it
_LARGEST = 127
_SLICE = 1 << 23  # weights worked on at once

Policy: TypeAlias = Callable[[str], Precision]
"""A matrix's name to the precision that it is stored in."""

Outliers: TypeAlias = Mapping[str, tuple[int, ...]]
"""A matrix's name to the input channels that int8 and int4 can not hold beside the others, ascending."""
NO_OUTLIERS: Outliers = MappingProxyType({})

OutputPeaks: TypeAlias = Mapping[str, FloatArray]
"""A matrix's name to the largest magnitude that each of its outputs has had, (out,)."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was seen of a model at work before anything is rounded.

    `outliers` are of any matrix, `peaks` of those that make queries, keys and values.
    """

    outliers: Outliers = field(default_factory=dict)
    peaks: OutputPeaks = field(default_factory=dict)


NOT_CALIBRATED = Calibration()


def graph_precision(request: GraphRequest, precision: Precision) -> Precision:
    """What most matrices of a graph are stored in: int4 is for what reads text, where bytes are what a token costs."""
    return "int8" if precision == "int4" and request.role not in INT4_ROLES else precision


def policy_of(request: GraphRequest, precision: Precision) -> Policy:
    """The graph's precision, but for what the family keeps in float32, or in an int4 bundle in more or fewer bits."""
    usual = graph_precision(request, precision)

    def policy(name: str) -> Precision:
        if name in request.high_precision:
            return "fp32"
        if precision == "int4" and name in request.four_bits:
            return "int4"
        return "int8" if usual == "int4" and name in request.eight_bits else usual

    return policy


def read_float32(weights: Weights, name: str) -> FloatArray:
    """A parameter as it is.

    Raises:
        CheckpointError: it has values that are not finite.
    """
    return _finite(weights[name], name).contiguous().numpy()


def read_transposed(weights: Weights, name: str, dtype: torch.dtype) -> npt.NDArray[np.floating]:
    """A matrix (out, in) as (in, out) in float32 or float16.

    Raises:
        CheckpointError: it has values that are not finite in that type.
    """
    stored = weights.stored(name)
    result = torch.empty(stored.shape[::-1], dtype=dtype)
    for rows, part in _slices(stored):
        result[:, rows] = part.T
    array: npt.NDArray[np.floating] = _finite(result, name).numpy()
    return array


def read_slices(weights: Weights, name: str, dtype: torch.dtype) -> Iterator[npt.NDArray[np.floating]]:
    """A parameter in float32 or float16, in slices of its first axis.

    Raises:
        CheckpointError: it has values that are not finite in that type.
    """
    for _, part in _slices(weights.stored(name)):
        yield _finite(part.to(dtype), name).numpy()


def read_columns(weights: Weights, name: str, channels: Sequence[int]) -> FloatArray:
    """Columns of a matrix (out, in) as float32 (channels, out).

    Raises:
        CheckpointError: they have values that are not finite.
    """
    columns = weights.stored(name)[:, list(channels)].float().T.contiguous()
    return _finite(columns, name).numpy()


def quantize_blocks(weights: Weights, name: str) -> npt.NDArray[np.uint8]:
    """A matrix (out, in) as uint8 (out, blocks, block): 128 + round(weight / scale), in padded with zeros to blocks."""
    stored = weights.stored(name)
    result = torch.empty(stored.shape[0], *blocks_of(stored.shape[1]), dtype=torch.uint8)
    for rows, part in _slices(stored):
        blocks = _in_blocks(part)
        scales = _scales_of(blocks)
        scales[scales == 0] = 1.0
        result[rows] = blocks.div_(scales[..., None]).round_().add_(_ZERO).to(torch.uint8)
    return result.numpy()


def block_scales(weights: Weights, name: str) -> FloatArray:
    """The scales of `quantize_blocks`, float32 (out * blocks,): each block's largest magnitude over 127.

    Raises:
        CheckpointError: the matrix has values that are not finite.
    """
    scales = torch.cat([_scales_of(_in_blocks(part)).flatten() for _, part in _slices(weights.stored(name))])
    return _finite(scales, name).numpy()


def blocks_of(n_inputs: int, bits: int = 8) -> tuple[int, int]:
    """How many blocks of which size take the fewest bytes for a row of so many weights, the last one perhaps padded."""
    sizes = [(-(-n_inputs // size), size) for size in _BLOCK_SIZES]
    return min(sizes, key=lambda blocks: blocks[0] * (blocks[1] * bits // 8 + _SCALE_BYTES))


def _slices(stored: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a matrix in float32, some at a time, as copies that may be changed."""
    width = stored[0].numel()
    n_rows = max(1, _SLICE // width)
    for start in range(0, stored.shape[0], n_rows):
        rows = slice(start, start + n_rows)
        yield rows, stored[rows].to(torch.float32, copy=True)


def _in_blocks(part: Tensor) -> Tensor:
    n_blocks, size = blocks_of(part.shape[1])
    padding = n_blocks * size - part.shape[1]
    if padding:
        part = torch.nn.functional.pad(part, (0, padding))
    return part.reshape(part.shape[0], n_blocks, size)


def _scales_of(blocks: Tensor) -> Tensor:
    largest: Tensor = torch.linalg.vector_norm(blocks, ord=float("inf"), dim=-1)
    return largest / _LARGEST


def _finite(tensor: Tensor, name: str) -> Tensor:
    # A sum is finite only when all values are, unless it overflows: then the values decide.
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
        raise CheckpointError(f"tensor {name}: has values that are not finite in {tensor.dtype}; is the file damaged?")
    return tensor
