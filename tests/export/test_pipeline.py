"""The whole export of the shrunken checkpoint: what it writes, and that nothing stays when it fails."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from edgevlm_export import text_pipeline
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.errors import CheckpointError, EdgeVLMError, ExportError, FidelityError
from edgevlm_runtime.manifest import CacheType, FidelityReport, Precision
from tests.export.conftest import Trace
from tests.export.specimens import write_layout, write_published


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where a bundle goes, in a folder of its own."""
    return tmp_path / "bundles" / "tiny"


def request_of(source: Path, out: Path, precision: Precision = "int8", *, force: bool = False) -> ExportRequest:
    return ExportRequest(
        name="tiny", family="moondream2", source=source, out=out, precision=precision, license="CC0-1.0", force=force
    )


class Failing:
    """Progress that raises when a step has advanced some times."""

    def __init__(self, step: str, error: BaseException, after: int = 1) -> None:
        self.steps: list[str] = []
        self._step, self._error, self._left = step, error, after

    def start(self, step: str, total: int | None = None) -> None:
        self.steps.append(step)
        if self._left == 0 and step.startswith(self._step):
            raise self._error

    def advance(self) -> None:
        if self.steps[-1].startswith(self._step):
            self._left -= 1
            if self._left == 0:
                raise self._error


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_verified_bundle_of_each_precision(
    tiny: Path, out: Path, precision: Precision, trace_once: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_pipeline, "trace", trace_once)
    bundle = export(request_of(tiny, out, precision))
    assert bundle.root == out.resolve() and bundle.manifest.precision == precision
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    manifest = open_bundle(out, check=True).manifest
    assert manifest.tasks == ("caption", "query", "detect", "point")
    assert set(manifest.graphs) == {
        "vision", "project", "decoder", "region_coordinate_encoder", "region_coordinate_decoder",
        "region_size_encoder", "region_size_decoder",
    }  # fmt: skip
    assert manifest.fidelity is not None
    assert (manifest.provenance.source, manifest.provenance.license) == ("tiny", "CC0-1.0")
    assert {"torch", "onnx-ir", "onnxruntime"} <= set(manifest.provenance.tools)
    assert (out / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", np.float32), ("fp16", np.float16), ("int8", np.float16)])
def test_the_embedding_table_is_the_checkpoints(
    tiny: Path, out: Path, tensors: dict[str, Tensor], precision: Precision, dtype: type[np.floating[Any]]
) -> None:
    export(request_of(tiny, out, precision))
    table = np.load(out / "embedding.npy", mmap_mode="r")
    assert table.dtype == dtype
    np.testing.assert_array_equal(table, tensors["text.wte"].float().numpy().astype(dtype))


@pytest.mark.parametrize(
    ("family", "words"), [("timm_backbone", "--kv-cache is for models that generate text"), ("moondream2", "nowhere")]
)
def test_only_models_that_generate_text_have_a_cache(tmp_path: Path, out: Path, family: str, words: str) -> None:
    request = replace(request_of(tmp_path / "nowhere", out), family=family, kv_cache="int8")
    with pytest.raises(EdgeVLMError, match=words):
        export(request)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("precision", "given", "kept"),
    [("fp32", None, "float32"), ("fp16", None, "float16"), ("int8", "float32", "float32")],
)
def test_the_manifest_says_what_the_cache_is(
    tiny: Path, out: Path, precision: Precision, given: CacheType | None, kept: str
) -> None:
    manifest = export(replace(request_of(tiny, out, precision), kv_cache=given)).manifest
    assert manifest.cache is not None and manifest.cache.dtype == kept
    given_types = {spec.dtype for spec in manifest.graphs["decoder"].inputs if spec.name.startswith("past_key_values.")}
    assert given_types == {kept}


@pytest.mark.usefixtures("quick")
def test_a_license_beside_the_checkpoint_comes_along(
    tiny: Path, out: Path, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    folder = write_layout(write_published, tmp_path / "licensed", tensors, beside=tiny)
    (folder / "LICENSE.md").write_text("do as you like")
    export(request_of(folder, out))
    assert (out / "LICENSE").read_text() == "do as you like"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("step", ["trace", "write"])
@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), ExportError, "disk is full"),
        (OSError("4096 requested and 12 written"), ExportError, "disk is full"),  # NumPy's words for it
        (PermissionError(errno.EACCES, "Permission denied"), ExportError, "Permission denied"),
        (RuntimeError("torch"), RuntimeError, "torch"),
    ],
)
def test_whatever_fails_nothing_stays(
    tiny: Path, out: Path, step: str, error: BaseException, raised: type[BaseException], words: str | None
) -> None:
    with pytest.raises(raised, match=words) as caught:
        export(request_of(tiny, out), Failing(step, error, after=2))
    assert "\n" not in str(caught.value)
    assert not list(out.parent.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_bundle_below_its_bar_does_not_stay(tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(root: Path, *_: object) -> FidelityReport:
        assert (root / "manifest.json").is_file()
        raise FidelityError("top-1 agreement 0.2, the bar is 0.95")

    monkeypatch.setattr(text_pipeline, "verify_export", fail)
    with pytest.raises(FidelityError):
        export(request_of(tiny, out))
    assert not list(out.parent.iterdir())


@pytest.mark.usefixtures("quick")
def test_a_weight_that_is_not_finite_leaves_nothing(
    tiny: Path, out: Path, tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    broken = {**tensors, "text.lm_head.weight": tensors["text.lm_head.weight"].clone().fill_(float("nan"))}
    folder = write_layout(write_published, tmp_path / "broken", broken, beside=tiny)
    with pytest.raises(CheckpointError, match=r"text\.lm_head\.weight"):
        export(request_of(folder, out))
    assert not list(out.parent.iterdir())


@pytest.mark.usefixtures("quick")
def test_too_little_space_is_said_before_writing(tiny: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tiny)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    progress = Failing("nothing", RuntimeError())
    with pytest.raises(ExportError, match="MB free"):
        export(request_of(tiny, out), progress)
    assert progress.steps[-1] == "trace"
    assert not list(out.parent.iterdir())


@pytest.mark.usefixtures("quick")
def test_an_existing_bundle_is_replaced_only_with_force(tiny: Path, out: Path) -> None:
    export(request_of(tiny, out, "fp32"))
    with pytest.raises(ExportError, match="--force"):
        export(request_of(tiny, out))
    with pytest.raises(KeyboardInterrupt):
        export(request_of(tiny, out, force=True), Failing("write", KeyboardInterrupt()))
    assert open_bundle(out).manifest.precision == "fp32"
    assert export(request_of(tiny, out, force=True)).manifest.precision == "int8"
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]


def _folder(out: Path) -> None:
    out.mkdir(parents=True)
    (out / "letters.txt").write_text("dear")


def _file(out: Path) -> None:
    out.parent.mkdir(parents=True)
    out.write_text("dear")


@pytest.mark.parametrize("make", [_folder, _file])
@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_bundle_is_never_replaced(tiny: Path, out: Path, make: Callable[[Path], None], force: bool) -> None:
    make(out)
    with pytest.raises(ExportError, match="exists"):
        export(request_of(tiny, out, force=force))
    assert (out / "letters.txt" if out.is_dir() else out).read_text() == "dear"


def test_a_checkpoint_that_does_not_fit_leaves_nothing(tiny: Path, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny, folder)
    data = json.loads((folder / "config.json").read_text())
    data["config"]["text"]["ff_dim"] = 173
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"mlp\.fc1\.weight has shape \(172, 64\), expected \(173, 64\)"):
        export(request_of(folder, out))
    assert not list(out.parent.iterdir())
