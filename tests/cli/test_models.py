"""list, show, rm, verify, doctor, and bundles that are missing or damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import edgevlm
from tests.cli.conftest import Run
from tests.cli.image_bundles import NPU, write_classifier


@pytest.fixture
def installed(bundle: Path, tmp_path: Path) -> Path:
    """The bundle under EDGEVLM_HOME, as mine-int8."""
    return Path(shutil.copytree(bundle, tmp_path / "home" / "models" / "mine-int8"))


def test_list_tells_what_is_there_and_what_can_be(run: Run, installed: Path) -> None:
    finished = run("list")
    assert finished.code == 0
    rows = {line.split()[0]: line for line in finished.out.splitlines()[1:]}
    assert "installed" in rows["mine-int8"]
    assert "not exported" in rows["moondream2"] and "Apache-2.0" in rows["moondream2"]
    assert "nano" in rows
    models = json.loads(run("list", "--json").out)["models"]
    assert {model["name"] for model in models} == set(rows)
    assert run("ls").out == finished.out


def test_list_hides_what_is_exported_already(run: Run, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "home" / "models" / "moondream2-int8")
    names = [model["name"] for model in json.loads(run("list", "--json").out)["models"]]
    assert "moondream2-int8" in names and "moondream2" not in names and "moondream2-0.5b" in names


def test_list_survives_a_damaged_bundle(run: Run, installed: Path) -> None:
    (installed / "manifest.json").write_text("{")
    finished = run("list")
    assert finished.code == 0
    assert any(line.startswith("mine-int8") and "damaged" in line for line in finished.out.splitlines())


def test_show_tells_what_a_bundle_is(run: Run, bundle: Path) -> None:
    manifest = edgevlm.load(bundle).manifest
    finished = run("show", bundle)
    assert finished.code == 0
    for text in (manifest.name, manifest.provenance.license, manifest.precision, *manifest.tasks, *manifest.graphs):
        assert text in finished.out
    record = json.loads(run("show", bundle, "--json").out)
    assert record["provenance"]["source"] == manifest.provenance.source
    assert record["path"] == str(bundle.resolve())


def test_show_tells_what_an_image_model_does(call: Run, classifier: Path, dual_encoder: Path, tmp_path: Path) -> None:
    out = call("show", classifier).out
    assert "shorter side to 10 (bicubic), 8x8 in the middle; mean 0.5, std 0.5" in out
    assert "4: red, crimson | green | blue | ..." in out
    assert "classifier folded: 123 to 45 nodes" in out and "top-1 of 7 images agrees" in out
    words = call("show", dual_encoder).out
    assert 'softmax of 5 * cosine -1; labels are read as "a photo of a {}."' in words
    assert "up to 8 tokens" in words
    npu = call("show", write_classifier(tmp_path / "npu", npu=NPU, notes={"kept": "two layers"})).out
    assert "hexagon-v75, compiled by onnxruntime-qnn 2.7.0, checked on the Hexagon simulator: cosine 0.9987" in npu
    assert "the same first class on 100% of the images" in npu and "two layers" in npu


def test_list_names_the_npu_and_fits_a_terminal(call: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classifier(tmp_path / "home" / "models" / "colors-hexagon-v75", npu=NPU, description="long " * 100)
    (row,) = [line for line in call("list").out.splitlines() if line.startswith("colors-")]
    assert " fp32 hexagon-v75 " in row and len(row) > 500
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = call("list", "--verbose").out.splitlines()
    assert max(map(len, lines)) == 120, "COLUMNS of the tests"
    assert [line for line in lines if line.startswith("colors-")] == [f"{row[:119]}…"]


def test_verify_passes_on_a_sound_bundle(run: Run, bundle: Path) -> None:
    finished = run("verify", bundle)
    assert finished.code == 0, finished.err


def _flip_a_bit(root: Path, name: str) -> None:
    content = bytearray((root / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / name).write_bytes(content)


def _edit_manifest(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def edit(root: Path) -> None:
        manifest = json.loads((root / "manifest.json").read_text())
        change(manifest)
        (root / "manifest.json").write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "copied"),
        (lambda root: (root / "manifest.json").unlink(), "manifest.json"),
        (lambda root: (root / "manifest.json").write_text("nonsense"), "manifest.json"),
        (lambda root: (root / "decoder.onnx").unlink(), "decoder.onnx"),
        (lambda root: _flip_a_bit(root, "decoder.onnx"), "decoder.onnx"),
        (lambda root: _flip_a_bit(root, "embedding.npy"), "embedding.npy"),
        (lambda root: _flip_a_bit(root, "tokenizer.json"), "tokenizer.json"),
        (_edit_manifest(lambda manifest: manifest.update(schema_version=99)), "99"),
        (_edit_manifest(lambda manifest: manifest.update(tokenzier="x")), "tokenizer"),
        (_edit_manifest(lambda manifest: manifest.update(tokenizer="../scene.png")), "../scene.png"),
    ],
)
def test_a_damaged_bundle_is_one_line_and_exit_3(
    run: Run, copied: Path, scene: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(copied)
    finished = run("run", scene, "describe", "-m", copied)
    assert (finished.code, finished.out) == (3, "")
    assert message in finished.error_line()


def test_a_model_that_is_not_there_is_one_line_and_exit_3(run: Run, scene: Path, installed: Path) -> None:
    unknown = run("run", scene, "describe", "-m", "mine-int9")
    assert unknown.code == 3
    assert "did you mean mine-int8?" in unknown.error_line()
    known = run("run", scene, "describe", "-m", "Moondream2")
    assert known.code == 3
    assert "edgevlm export moondream2" in known.error_line()


def test_rm_removes_what_is_installed(run: Run, installed: Path) -> None:
    asked = run("rm", "mine")
    assert asked.code == 2
    assert "--yes" in asked.error_line()
    assert installed.exists()
    finished = run("rm", "mine", "--yes")
    assert (finished.code, finished.err) == (0, f"removed {installed}\n")
    assert not installed.exists()
    assert run("rm", "mine", "--yes").code == 3


def test_rm_does_not_guess(run: Run, installed: Path) -> None:
    installed.rename(installed.with_name("mine-fp16"))
    shutil.copytree(installed.with_name("mine-fp16"), installed)
    finished = run("rm", "mine", "--yes")
    assert finished.code == 2
    assert finished.error_line() == "mine may be mine-fp16 or mine-int8; name one"
    assert installed.exists()


def test_rm_of_a_link_keeps_what_it_leads_to(run: Run, copied: Path, tmp_path: Path) -> None:
    link = tmp_path / "home" / "models" / "linked-int8"
    link.parent.mkdir(parents=True)
    link.symlink_to(copied)
    assert run("rm", "linked", "--yes").code == 0
    assert not link.is_symlink()
    assert (copied / "manifest.json").exists()


def test_rm_touches_nothing_outside_the_home(run: Run, copied: Path) -> None:
    assert run("rm", "nano", "--yes").code == 2
    finished = run("rm", copied, "--yes")
    assert finished.code == 3
    assert "only what is there" in finished.error_line()
    assert copied.exists()


def test_doctor_reports_and_never_fails(run: Run, installed: Path) -> None:
    (installed / "decoder.onnx").unlink()
    finished = run("doctor")
    assert (finished.code, finished.err) == (0, "")
    for name in ("python", "engine onnxruntime", "numpy", "memory", "npu", "home", "model mine-int8"):
        assert f"  {name}" in finished.out
    states = {check["name"]: check["state"] for check in json.loads(run("doctor", "--json").out)["checks"]}
    assert states["engine onnxruntime"] == "ok"
    assert states["model mine-int8"] == "missing"
