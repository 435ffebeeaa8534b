"""A bundle, and a home folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm_runtime.bundle import write_manifest
from tests.runtime.bundle.manifests import MANIFEST


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "bundle"
    (root / "text").mkdir(parents=True)
    (root / "vision.onnx").write_bytes(b"graph" * 100)
    (root / "vision.onnx.data").write_bytes(bytes(range(256)) * 64)
    (root / "text" / "tokenizer.json").write_text("{}")
    write_manifest(root, MANIFEST)
    return root
