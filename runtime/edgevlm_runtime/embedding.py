"""The embedding table of a bundle, an .npy file: floats (vocab, dim), or (vocab,) rows of a scale and int8 values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.engines import Array, FloatArray
from edgevlm_runtime.errors import DamagedBundle

_LARGEST = 127


def open_embedding(path: Path) -> Array:
    """The table, memory-mapped.

    Raises:
        DamagedBundle: the file can not be read, or is no table.
    """
    try:
        table: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DamagedBundle(f"{path}: not a table of embeddings ({error}); export the model again") from error
    if not _is_floats(table) and not _is_int8_rows(table):
        raise DamagedBundle(
            f"{path}: embeddings are {table.dtype} {table.shape}, but must be floats (vocab, dim) "
            "or rows of a scale and int8 values; export the model again"
        )
    return table


def read_rows(table: Array, token_ids: Sequence[int]) -> FloatArray:
    """Float32 embeddings (tokens, dim) of ids that have a row in the table."""
    rows = table[list(token_ids)]
    if rows.dtype.names is None:
        return np.asarray(rows, np.float32)
    return np.asarray(rows["scale"][:, None] * rows["values"].astype(np.float32), np.float32)


def int8_rows(dim: int) -> np.dtype[np.void]:
    """The type of a row in 8 bits: its values are scale * values."""
    return np.dtype([("scale", "<f4"), ("values", "i1", (dim,))])


def pack_rows(rows: npt.NDArray[np.floating]) -> Array:
    """Embeddings (n, dim) as rows (n,) in 8 bits."""
    scales = np.abs(rows).max(axis=-1) / _LARGEST
    packed = np.empty(len(rows), int8_rows(rows.shape[-1]))
    packed["scale"] = scales
    packed["values"] = np.rint(rows / np.where(scales == 0, 1, scales)[:, None])
    return packed


def _is_floats(table: Array) -> bool:
    return table.ndim == 2 and table.dtype in (np.float16, np.float32)


def _is_int8_rows(table: Array) -> bool:
    if table.ndim != 1 or "values" not in (table.dtype.names or ()):
        return False
    shape = table.dtype["values"].shape
    return len(shape) == 1 and table.dtype == int8_rows(shape[0])
