"""What bench tries, and which setting it keeps to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm import bench
from edgevlm.bench import Setting, answer_ms, fastest, measure, noise, settings_to_try, usual_setting
from edgevlm.home import BUILT_IN_PATH
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.engines import choice
from edgevlm_runtime.errors import EngineError, InvalidOption
from edgevlm_runtime.manifest import NpuSpec
from edgevlm_runtime.tuning import remember
from tests.cli.image_bundles import write_classifier

ORT = Setting(engine="onnxruntime", threads=2)
IR = Setting(engine="openvino", threads=2)


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty home, five threads, ONNX Runtime and OpenVINO."""
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("EDGEVLM_THREADS", "5")
    monkeypatch.setattr(choice, "installed_engines", lambda: ("onnxruntime", "openvino", "qnn"))


def test_every_engine_that_can_run_it_is_tried_with_all_and_half_of_the_cores() -> None:
    manifest = open_bundle(BUILT_IN_PATH).manifest
    assert settings_to_try(manifest) == [Setting(engine="onnxruntime", threads=count) for count in (5, 2)]
    decoder = replace(manifest.graphs["decoder"], compiled={"openvino": "decoder.xml"})
    with_ir = replace(manifest, graphs={**manifest.graphs, "decoder": decoder})
    assert {setting.engine for setting in settings_to_try(with_ir)} == {"onnxruntime", "openvino"}
    assert settings_to_try(with_ir, "openvino", 3) == [Setting(engine="openvino", threads=3)]
    npu = NpuSpec(target="hexagon-v75", engine="qnn", compiler="1", checked_on="simulator", cosine=1.0)
    with pytest.raises(InvalidOption, match="hexagon-v75: there is nothing to tune"):
        settings_to_try(replace(manifest, npu=npu))


def test_the_usual_setting_stays_unless_another_is_clearly_faster() -> None:
    assert fastest({ORT: {"image_ms": 100.0}, IR: {"image_ms": 96.0}}, usual=ORT) == ORT
    assert fastest({ORT: {"image_ms": 100.0}, IR: {"image_ms": 94.0}}, usual=ORT) == IR
    assert fastest({IR: {"image_ms": 100.0}}, usual=ORT) == IR, "the usual one failed"
    text = {"load_ms": 500.0, "first_ms": 36.0, "image_ms": 7.0, "tokens_per_second": 64.0}
    assert answer_ms(text) == 1536.0, "a command's whole time"


def test_what_was_tuned_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(BUILT_IN_PATH)
    assert usual_setting(bundle) == Setting(engine="onnxruntime", threads=5)
    remember(bundle, "openvino", 3)
    assert usual_setting(bundle, threads=1) == Setting(engine="openvino", threads=1)
    assert usual_setting(bundle, "onnxruntime") == Setting(engine="onnxruntime", threads=5)
    monkeypatch.delenv("EDGEVLM_THREADS")
    assert usual_setting(bundle) == Setting(engine="openvino", threads=3)


def test_an_engine_that_fails_is_left_out_unless_there_is_no_other(tmp_path: Path) -> None:
    bundle = open_bundle(write_classifier(tmp_path / "colors", ("red", "green", "blue", "")))
    broken = Setting(engine="qnn", threads=1)  # runs only what was compiled for it
    turns: list[None] = []
    works = Setting(engine="onnxruntime", threads=1)
    results = measure(bundle, [broken, works], noise(bundle.manifest), 2, lambda: turns.append(None))
    assert list(results.figures) == [works]
    assert list(results.failed) == [broken]
    assert len(turns) == 4
    with pytest.raises(InvalidOption, match="not compiled for an NPU"):
        measure(bundle, [broken], noise(bundle.manifest), 1, lambda: None)


def test_a_process_that_dies_is_an_engine_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = open_bundle(write_classifier(tmp_path / "colors", ("red", "green", "blue", "")))
    monkeypatch.setattr(bench, "_send_figures", _die)
    with pytest.raises(EngineError, match="onnxruntime: the process that measured it ended with 9"):
        measure(bundle, [ORT], noise(bundle.manifest), 1, lambda: None)


def _die(*_: object) -> None:
    raise SystemExit(9)
