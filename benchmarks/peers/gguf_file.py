"""GGUF files with random tensors, written block by block: what llama.cpp reads, without a checkpoint to convert.

Layout (version 3): header, metadata, tensor descriptions, then the tensors, each at a multiple of 32 bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt

Value: TypeAlias = bool | int | float | str | Sequence[int] | Sequence[float] | Sequence[str]

_ALIGNMENT = 32
_BLOCKS_AT_ONCE = 1 << 16
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


@dataclass(frozen=True, kw_only=True)
class Format:
    """How values are stored: `n_values` of them in each block of `fields`; `id` is ggml's number for it."""

    id: int
    n_values: int
    fields: tuple[tuple[str, str, int], ...]

    @property
    def dtype(self) -> np.dtype[np.void]:
        """One block."""
        return np.dtype([(name, kind, (count,)) for name, kind, count in self.fields])


F32 = Format(id=0, n_values=1, fields=(("values", "<f4", 1),))
F16 = Format(id=1, n_values=1, fields=(("values", "<f2", 1),))
Q4_0 = Format(id=2, n_values=32, fields=(("scale", "<f2", 1), ("low", "u1", 16)))
Q8_0 = Format(id=8, n_values=32, fields=(("scale", "<f2", 1), ("low", "u1", 32)))
_K_SCALES = (("scale", "<f2", 1), ("offset", "<f2", 1), ("scales", "u1", 12))
Q4_K = Format(id=12, n_values=256, fields=(*_K_SCALES, ("low", "u1", 128)))
Q5_K = Format(id=13, n_values=256, fields=(*_K_SCALES, ("high", "u1", 32), ("low", "u1", 128)))
Q6_K = Format(
    id=14, n_values=256, fields=(("low", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("scale", "<f2", 1))
)
# Uniform codes of so many bits have this standard deviation; a block's scale makes the asked one of it.
_CODE_STD = {2: 4.61, 8: 73.9, 12: 4.61, 13: 9.23, 14: 18.5}
_SUB_SCALE = 32  # all sub-blocks of the K formats have the same scale and offset
_PACKED_32 = (0xA0,) * 8 + (0x00,) * 4  # sixteen 6-bit numbers 32, as Q4_K and Q5_K pack them


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of random values around `mean`, which only float formats can have other than 0."""

    name: str
    shape: tuple[int, ...]
    format: Format
    std: float
    mean: float = 0.0

    @property
    def n_bytes(self) -> int:
        """Size in the file.

        Raises:
            ValueError: rows can not be divided into blocks.
        """
        if self.shape[-1] % self.format.n_values:
            raise ValueError(f"{self.name}: rows of {self.shape[-1]} do not divide into {self.format.n_values}")
        return math.prod(self.shape) // self.format.n_values * self.format.dtype.itemsize


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Sequence[Tensor], seed: int = 0) -> None:
    """Write a file, whole or not at all; needs a few MB of memory at any size."""
    unfinished = path.with_suffix(".unfinished")
    rng = np.random.default_rng(seed)
    with unfinished.open("wb") as opened:
        opened.write(header(metadata, tensors))
        for tensor in tensors:
            _pad(opened)
            for blocks in random_blocks(tensor, rng):
                opened.write(blocks.tobytes())
        _pad(opened)
    unfinished.rename(path)


def header(metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> bytes:
    """All that stands before the tensors."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    parts += [_string(key) + _value(value) for key, value in metadata.items()]
    offset = 0
    for tensor in tensors:
        sizes = tensor.shape[::-1]  # the fastest axis first
        parts.append(_string(tensor.name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", tensor.format.id, offset))
        offset += tensor.n_bytes + -tensor.n_bytes % _ALIGNMENT
    return b"".join(parts)


def random_blocks(tensor: Tensor, rng: np.random.Generator) -> Iterator[npt.NDArray[np.void]]:
    """The tensor's blocks, a few at a time."""
    todo = math.prod(tensor.shape) // tensor.format.n_values
    while todo:
        n_blocks = min(todo, _BLOCKS_AT_ONCE)
        yield _random(tensor, n_blocks, rng)
        todo -= n_blocks


def _random(tensor: Tensor, n_blocks: int, rng: np.random.Generator) -> npt.NDArray[np.void]:
    blocks = np.zeros(n_blocks, tensor.format.dtype)
    fields = {name for name, _, _ in tensor.format.fields}
    if "values" in fields:
        blocks["values"] = rng.standard_normal((n_blocks, 1), np.float32) * tensor.std + tensor.mean
        return blocks
    for codes in sorted(fields & {"low", "high"}):
        blocks[codes] = rng.integers(0, 256, blocks[codes].shape, np.uint8)
    scale = tensor.std / _CODE_STD[tensor.format.id]
    if "scales" in fields:
        scale /= _SUB_SCALE
        blocks["scales"] = _PACKED_32 if "offset" in fields else _SUB_SCALE
    blocks["scale"] = scale
    if "offset" in fields:  # codes start at 0: the offset puts their mean there
        blocks["offset"] = scale * (7.5 if tensor.format is Q4_K else 15.5)
    return blocks


def _pad(opened: BinaryIO) -> None:
    opened.write(b"\0" * (-opened.tell() % _ALIGNMENT))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    if isinstance(value, (str, bool, int, float)):
        kind, encoded = _scalar(value)
        return struct.pack("<I", kind) + encoded
    # Lists of whole numbers are signed in llama.cpp's files, single ones are not.
    items = [(_INT32, struct.pack("<i", item)) if isinstance(item, int) else _scalar(item) for item in value]
    return struct.pack("<IIQ", _ARRAY, items[0][0], len(items)) + b"".join(encoded for _, encoded in items)


def _scalar(value: bool | int | float | str) -> tuple[int, bytes]:
    if isinstance(value, str):
        return _STRING, _string(value)
    if isinstance(value, bool):
        return _BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return _UINT32, struct.pack("<I", value)
    return _FLOAT32, struct.pack("<f", value)
