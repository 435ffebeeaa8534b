"""What was measured on this machine: when it holds, what it changes, and files that can not be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgevlm_runtime import tuning
from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.tuning import find, forget, remember, tuned_options

AUTO = LoadOptions()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty EDGEVLM_HOME that is not there yet, and no EDGEVLM_THREADS."""
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EDGEVLM_THREADS", raising=False)
    return tmp_path / "home"


def test_what_options_leave_open_is_what_was_measured(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuned_options(AUTO, bundle) == AUTO
    remember(bundle, "openvino", 3)
    assert tuned_options(AUTO, bundle) == LoadOptions(engine="openvino", threads=3)
    assert tuned_options(LoadOptions(threads=1), bundle) == LoadOptions(engine="openvino", threads=1)
    assert tuned_options(LoadOptions(engine="openvino"), bundle) == LoadOptions(engine="openvino", threads=3)
    other = LoadOptions(engine="onnxruntime")
    assert tuned_options(other, bundle) == other
    monkeypatch.setenv("EDGEVLM_THREADS", "1")
    assert tuned_options(AUTO, bundle) == LoadOptions(engine="openvino")


def test_it_holds_for_one_bundle_on_one_machine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(bundle, "onnxruntime", 1)
    changed = replace(bundle, manifest=replace(bundle.manifest, description="another"))
    assert find(changed) is None
    remember(changed, "openvino", 2)
    assert (found := find(bundle)) and found.engine == "onnxruntime"
    assert forget(changed) and not forget(changed)
    monkeypatch.setattr(tuning, "physical_cores", lambda: 99)
    assert find(bundle) is None
    assert forget(bundle), "on other machines too"
    monkeypatch.undo()
    assert find(bundle) is None


@pytest.mark.parametrize("contents", [b"", b"[]", b"\xff", b'{"a": 1', b"[" * 100_000])
def test_a_damaged_file_is_an_empty_one_and_written_anew(bundle: Bundle, home: Path, contents: bytes) -> None:
    home.mkdir()
    (home / "tuned.json").write_bytes(contents)
    assert find(bundle) is None
    remember(bundle, "onnxruntime", 2)
    assert (found := find(bundle)) and found.threads == 2


@pytest.mark.parametrize("change", [{"engine": "auto"}, {"engine": 1}, {"threads": 0}, {"threads": True}, {"more": 1}])
def test_a_record_that_can_not_be_used_is_none(bundle: Bundle, home: Path, change: dict[str, object]) -> None:
    remember(bundle, "onnxruntime", 2)
    ((key, record),) = json.loads((home / "tuned.json").read_text()).items()
    (home / "tuned.json").write_text(json.dumps({key: {**record, **change}}))
    assert find(bundle) is None
