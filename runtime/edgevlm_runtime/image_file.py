"""One encoded image as a file: a line of JSON (StoredImage), blocks of numbers, and the CRC-32 of all before it.

CRC-32 finds what disks and killed processes do, at twice the speed of SHA-256. What the blocks mean is not known here.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeAlias

from edgevlm_runtime.records import read_record, write_record

if TYPE_CHECKING:  # `cache ls` needs no NumPy
    from edgevlm_runtime.engines import Array

FORMAT = 1
MAX_HEADER_BYTES = 4096
_CRC_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """What an entry says of itself: who encoded it, pixels of the upright image, float32 (tokens, dim) image tokens.

    `key` is what it was encoded for; `positions` of the decoder's cache hold it, `fused_positions` of fusion's where
    the model has that, and `data_bytes` of blocks follow.
    """

    key: str
    model: str
    precision: str
    engine: str
    width: int
    height: int
    tokens: int
    dim: int
    positions: int
    data_bytes: int
    fused_positions: int = 0


Room: TypeAlias = "Callable[[StoredImage], Sequence[Array]]"
"""Gives the arrays that an entry's blocks are read into; raises ValueError where they would not fit."""


def read_image(file: IO[bytes], key: str, room: Room) -> StoredImage:
    """Read the entry of that key from its beginning into the arrays of `room`, which are undefined after an error.

    Raises:
        ValueError, DamagedBundle: it is not what was written.
        OSError: the disk failed.
    """
    head, image = read_header(file)
    expected = len(head) + image.data_bytes + _CRC_BYTES
    if (found := os.fstat(file.fileno()).st_size) != expected:
        raise ValueError(f"{found} bytes where {expected} are needed")
    if image.key != key:
        raise ValueError(f"it is that of {image.key:.12}")
    blocks = room(image)
    if (n_bytes := sum(block.nbytes for block in blocks)) != image.data_bytes:
        raise ValueError(f"{image.data_bytes} bytes of blocks where {n_bytes} are needed")
    file.seek(len(head))
    crc = zlib.crc32(head)
    for block in blocks:
        view = _as_bytes(block)
        _read_fully(file, view)
        crc = zlib.crc32(view, crc)
    if file.read(_CRC_BYTES) != crc.to_bytes(_CRC_BYTES, "little"):
        raise ValueError("its checksum differs")
    return image


def read_header(file: IO[bytes]) -> tuple[bytes, StoredImage]:
    """The first line, as it is and as a record; raises as `read_image`."""
    line, found, _ = file.read(MAX_HEADER_BYTES).partition(b"\n")
    if not found:
        raise ValueError("it has no header")
    image = read_record(StoredImage, json.loads(line), "header")
    if min(image.tokens, image.dim, image.positions, image.fused_positions, image.data_bytes) < 0:
        raise ValueError("its header has negative sizes")
    return line + found, image


def write_image(file: IO[bytes], image: StoredImage, blocks: Sequence[Array]) -> None:
    """Write an entry: `image.data_bytes` of contiguous blocks in all; raises OSError."""
    head = json.dumps(write_record(image)).encode() + b"\n"
    crc = zlib.crc32(head)
    file.write(head)
    for block in blocks:
        view = _as_bytes(block)
        file.write(view)
        crc = zlib.crc32(view, crc)
    file.write(crc.to_bytes(_CRC_BYTES, "little"))


def _read_fully(file: IO[bytes], view: memoryview) -> None:
    while len(view) > 0:
        n_read = file.readinto(view)  # type: ignore[attr-defined]
        if not n_read:
            raise ValueError("it ends early")
        view = view[n_read:]


def _as_bytes(block: Array) -> memoryview:
    """The bytes of a contiguous array, without a copy."""
    assert block.flags.c_contiguous
    return block.reshape(-1).view("u1").data
