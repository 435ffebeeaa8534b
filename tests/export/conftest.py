"""A tiny checkpoint, its tensors, and graphs that are traced only once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from torch import Tensor, nn

from edgevlm_export import calibrate, text_pipeline, trace
from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import GraphRequest, ReadOptions, Recipe
from edgevlm_export.families.moondream2 import Moondream2Family
from edgevlm_export.quantize import NOT_CALIBRATED
from edgevlm_runtime.golden import GOLDEN

Trace = Callable[[GraphRequest, nn.Module], ir.Model]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunken checkpoint, as published."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    FAMILIES["moondream2"].shrink(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(tiny: Path) -> Recipe:
    return read_recipe(tiny)


@pytest.fixture(scope="session")
def tensors(tiny: Path) -> dict[str, Tensor]:
    """Its tensors in bfloat16 by the module's names."""
    return {name.removeprefix("model."): weight.read() for name, weight in open_checkpoint(tiny).items()}


@pytest.fixture(scope="session")
def trace_once() -> Trace:
    """`trace` for graphs of the shrunken checkpoint."""
    return caching_trace()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, trace_once: Trace) -> None:
    """Exports of the shrunken checkpoint that do not trace again, calibrate or verify."""
    monkeypatch.setattr(text_pipeline, "trace", trace_once)
    monkeypatch.setattr(calibrate, "observe", lambda *_: NOT_CALIBRATED)
    monkeypatch.setattr(text_pipeline, "verify_export", skip_verification)


def caching_trace() -> Trace:
    """`trace` for graphs of one model, each traced once and then copied."""
    traced: dict[str, ir.Model] = {}

    def cached(request: GraphRequest, module: nn.Module) -> ir.Model:
        if request.role not in traced:
            traced[request.role] = trace.trace(request, module)
        return traced[request.role].clone()

    return cached


def skip_verification(folder: Path, *_: object) -> None:
    """In the place of `verify_export`: no report, and golden vectors of no content."""
    (folder / GOLDEN).touch()


def read_recipe(path: Path, *, revision: str | None = None, tokenizer: Path | None = None) -> Recipe:
    return Moondream2Family().read(open_checkpoint(path), ReadOptions(revision=revision, tokenizer=tokenizer))
