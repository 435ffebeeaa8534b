"""A bundle of a few bytes whose manifest can be edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgevlm_runtime import bundle as bundle_module
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.errors import BundleError, DamagedBundle
from edgevlm_runtime.manifest import GraphSpec, ImageSpec, Manifest, Provenance, TilingSpec

HALF = (0.5, 0.5, 0.5)
MANIFEST = Manifest(
    schema_version=1,
    name="tiny-ü",
    family="test",
    description="for tests",
    precision="fp32",
    tasks=("caption",),
    graphs={"vision": GraphSpec(file="vision.onnx", precision="fp32", inputs=(), outputs=())},
    files={},
    provenance=Provenance(source="x", revision="y", license="z", date="2026-01-01", tools={"edgevlm": "0.1.0"}),
    image=ImageSpec(
        crop_px=378,
        resample="lanczos",
        mean=HALF,
        std=HALF,
        tiling=TilingSpec(patch_px=14, margin_patches=4, max_crops=12),
    ),
    tokenizer="text/tokenizer.json",
)


def edit(root: Path, change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> None:
    """Change manifest.json as someone would who knows how it is signed."""
    path = root / "manifest.json"
    data = json.loads(path.read_text())
    del data["checksum"]
    change(data)
    path.write_text(json.dumps(data | {"checksum": bundle_module._checksum(data) if sign else "0" * 64}))


def refused(root: Path, kind: type[BundleError] = DamagedBundle, *, check: bool = True) -> str:
    with pytest.raises(kind) as error:
        open_bundle(root, check=check)
    assert type(error.value) is kind and error.value.exit_code == 3
    message = str(error.value)
    assert message and "\n" not in message
    return message
