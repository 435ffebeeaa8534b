"""Embedding tables in floats and in 8 bits, and files that are neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from edgevlm_runtime.embedding import int8_rows, open_embedding, pack_rows, read_rows
from edgevlm_runtime.errors import DamagedBundle


def draw() -> npt.NDArray[np.float32]:
    table = np.random.default_rng(0).standard_normal((20, 7)).astype(np.float32)
    table[3] = 0
    table[4] *= 1e3  # coarsens its own row only
    return table


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floats_are_read_as_they_are(dtype: type[np.floating[Any]], tmp_path: Path) -> None:
    table = draw().astype(dtype)
    np.save(tmp_path / "t.npy", table)
    rows = read_rows(open_embedding(tmp_path / "t.npy"), (5, 4, 5))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[[5, 4, 5]].astype(np.float32))


def test_eight_bits_are_within_half_a_step(tmp_path: Path) -> None:
    table = draw()
    np.save(tmp_path / "t.npy", pack_rows(table))
    opened = open_embedding(tmp_path / "t.npy")
    assert opened.nbytes == 20 * (7 + 4) and len(opened) == 20
    rows = read_rows(opened, range(20))
    assert rows.dtype == np.float32 and rows.shape == table.shape
    assert (np.abs(rows - table) <= np.abs(table).max(axis=-1, keepdims=True) / 127 * 0.501).all()
    assert read_rows(opened, ()).shape == (0, 7)


@pytest.mark.parametrize(
    "table",
    [
        np.zeros((4, 3), np.int8),
        np.zeros((4, 3, 2), np.float32),
        np.zeros((4, 3), int8_rows(5)),
        np.zeros(4, np.dtype([("scale", "<f4"), ("values", "i1")])),
        np.zeros(4, np.dtype([("scale", "<f4"), ("values", "u1", (5,))])),
        np.zeros(4, np.dtype([("scale", "<f4"), ("other", "i1", (5,))])),
    ],
)
def test_other_arrays_are_refused(table: npt.NDArray[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", table)
    with pytest.raises(DamagedBundle, match=r"t\.npy: embeddings are .*export the model again"):
        open_embedding(tmp_path / "t.npy")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.npy").write_bytes(b"no table")
    with pytest.raises(DamagedBundle, match="not a table of embeddings"):
        open_embedding(tmp_path / "t.npy")
