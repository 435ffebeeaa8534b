"""The trained checkpoints: small, in the published layouts, and still right after int4."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.home import load
from training.proofs.catalog import HERE, PROOFS
from training.proofs.evaluate import export_proof, score

_LIMIT = 6_000_000  # bytes
_LEAST = 0.95  # of 20 scenes' questions


@pytest.mark.parametrize("name", PROOFS)
def test_checkpoints_are_small(name: str) -> None:
    files = [file for file in (HERE / name).rglob("*") if file.is_file()]
    assert files and sum(file.stat().st_size for file in files) <= _LIMIT


@pytest.mark.parametrize("name", PROOFS)
def test_int4_still_answers(name: str, tmp_path: Path) -> None:
    """A whole export through the runtime."""
    with load(export_proof(HERE / name, name, tmp_path / name, "int4")) as model:
        assert score(model, 20).right >= _LEAST
