"""From a model's name to its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgevlm import home
from edgevlm_runtime.errors import ModelNotFound
from tests.cli.image_bundles import write_classifier, write_dual_encoder


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "models"


def _install(models: Path, name: str, age_s: int = 0) -> Path:
    folder = models / name
    folder.mkdir(parents=True)
    manifest = folder / "manifest.json"
    manifest.write_text("{}")
    when = manifest.stat().st_mtime - age_s
    os.utime(manifest, (when, when))
    return folder


def test_nano_is_built_in(models: Path) -> None:
    _install(models, "nano")
    assert home.resolve("NANO") == home.BUILT_IN_PATH


def test_a_bundle_is_found_by_its_exact_name(models: Path) -> None:
    folder = _install(models, "moondream2-fp16")
    _install(models, "moondream2-int8")
    assert home.resolve("Moondream2_FP16") == folder


def test_without_a_precision_the_newest_wins(models: Path) -> None:
    _install(models, "moondream2-fp32", age_s=60)
    newest = _install(models, "moondream2-int8")
    _install(models, "moondream2-fp16", age_s=30)
    assert home.resolve("moondream2") == newest


def test_a_longer_name_is_not_a_precision(models: Path) -> None:
    _install(models, "moondream2-0.5b-int8")
    with pytest.raises(ModelNotFound, match="edgevlm export moondream2"):
        home.resolve("moondream2")


def test_a_bundle_for_an_npu_is_found_by_its_full_name_only(models: Path) -> None:
    folder = _install(models, "fastvit-t8-hexagon-v75")
    assert home.resolve("fastvit_t8-hexagon-v75") == folder
    assert home.matches("fastvit_t8") == ()
    anywhere = _install(models, "fastvit-t8-int8", age_s=60)
    assert home.resolve("fastvit_t8") == anywhere


def test_a_backbone_of_timm_is_found_as_it_was_exported(models: Path) -> None:
    folder = _install(models, "resnet18.a1-in1k-int8")
    assert home.resolve("timm/resnet18.a1_in1k") == home.resolve("resnet18.a1_in1k") == folder


def test_bundles_that_can_do_a_task_are_found(models: Path) -> None:
    write_classifier(models / "colors-fp32")
    write_dual_encoder(models / "words-fp32")
    _install(models, "damaged-int8")
    assert home.that_can("embed") == ("colors-fp32", "words-fp32")
    assert home.that_can("search") == ("words-fp32",)
    assert home.that_can("caption") == ()


def test_a_name_wins_over_a_folder_here(models: Path, tmp_path: Path) -> None:
    (tmp_path / "moondream2").mkdir()
    assert home.resolve("moondream2") == Path("moondream2")
    folder = _install(models, "moondream2-int8")
    assert home.resolve("moondream2") == folder


def test_a_folder_without_a_manifest_is_not_listed(models: Path) -> None:
    (models / "half").mkdir(parents=True)
    folder = _install(models, "whole-int8")
    assert home.installed() == {"whole-int8": folder}


def test_an_unknown_name_is_answered_with_the_nearest(models: Path) -> None:
    _install(models, "kitchen-int8")
    with pytest.raises(ModelNotFound, match=r"did you mean kitchen-int8\?"):
        home.resolve("kitchen-int9")


def test_the_home_defaults_to_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGEVLM_HOME", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert home.home() == tmp_path / "edgevlm"
