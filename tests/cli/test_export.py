"""export, pull: from a folder to a bundle, and what stops them."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.cli.conftest import Run, Start


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A shrunken checkpoint in the published layout."""
    from edgevlm_export.families import FAMILIES

    FAMILIES["moondream2"].shrink(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_folder_becomes_a_bundle_that_answers_by_name(
    run: Run, checkpoint: Path, scene: Path, tmp_path: Path
) -> None:
    finished = run("export", "Moondream2", "--from", checkpoint, "--fp32", "--kv-cache", "float16", "--verbose")
    assert finished.code == 0, finished.err
    assert finished.err.startswith("edgevlm: open checkpoint\n")
    bundle = tmp_path / "home" / "models" / "moondream2-fp32"
    assert finished.out == f"{bundle}\n"
    assert "relative error" in finished.err
    assert "Traceback" not in finished.err
    assert run("run", scene, "describe", "-m", "moondream2", "-n", "4").code == 0
    assert "256 tokens, kept in float16" in run("show", "moondream2").out
    again = run("export", "moondream2", "--from", checkpoint, "--fp32")
    assert again.code == 1
    assert "--force" in again.error_line()


def test_ctrl_c_leaves_nothing_behind(start: Start, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundles" / "half"
    process = start("export", "moondream2", out, "--from", checkpoint, "--verbose")
    assert process.stderr is not None
    while b"trace" not in process.stderr.readline():
        pass
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith(b"edgevlm: interrupted\n")
    assert not out.exists()
    assert not list(out.parent.iterdir())


def test_a_missing_checkpoint_is_one_line(run: Run, tmp_path: Path) -> None:
    finished = run("export", "moondream2", tmp_path / "out", "--from", tmp_path / "nowhere")
    assert finished.code == 1
    assert str(tmp_path / "nowhere") in finished.error_line()


@pytest.fixture
def backbone(tmp_path: Path) -> Path:
    """A shrunken FastViT in timm's published layout, with names for its ten classes beside it."""
    from edgevlm_export.families import FAMILIES

    FAMILIES["timm_backbone"].shrink(tmp_path / "backbone")
    (tmp_path / "digits.txt").write_text("".join(f"digit {digit}\n" for digit in range(10)))
    return tmp_path / "backbone"


def test_a_backbone_becomes_a_bundle_that_classifies_by_name(
    run: Run, backbone: Path, scene: Path, tmp_path: Path
) -> None:
    name = "timm/fastvit_sa12.apple_in1k"
    finished = run("export", name, "--from", backbone, "--fp32", "--openvino", "--labels", "digits.txt")
    assert finished.code == 0, finished.err
    assert finished.out == f"{tmp_path / 'home' / 'models' / 'fastvit-sa12.apple-in1k-fp32'}\n"
    for text in ("relative error", "classifier folded: ", "images agrees"):
        assert text in finished.err
    first = run("classify", scene, "-m", name, "-k", "1")
    assert first.code == 0, first.err
    assert first.out.partition("  ")[2].startswith("digit ")
    shown = run("show", name).out
    for text in ("64x64", "labels", "10: digit 0 | digit 1", "classifier.xml for openvino", "folded: "):
        assert text in shown
    assert run("verify", name).code == 0


def test_a_bundle_for_an_npu_says_what_was_checked(run: Run, backbone: Path, tmp_path: Path) -> None:
    name = "timm/fastvit_sa12.apple_in1k"
    finished = run("export", name, "--from", backbone, "--npu", "intel", "--labels", "digits.txt")
    assert finished.code == 0, finished.err
    assert finished.out == f"{tmp_path / 'home' / 'models' / 'fastvit-sa12.apple-in1k-intel'}\n"
    verdict = finished.err.splitlines()[-1]
    assert verdict.startswith("edgevlm: intel, compiled by openvino")
    assert "checked on OpenVINO's CPU device: cosine " in verdict and "the same first class on" in verdict
    (row,) = [line for line in run("list").out.splitlines() if line.startswith("fastvit-sa12.apple-in1k-intel")]
    assert " int8 intel " in row


def test_labels_of_another_model_are_one_line(call: Run, backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "nine.txt").write_text("a digit\n" * 9)
    finished = call("export", "timm/fastvit_sa12.apple_in1k", "--from", backbone, "--fp32", "--labels", "nine.txt")
    assert finished.code == 1
    for text in ("nine.txt", "9", "10"):
        assert text in finished.error_line()
    assert not (tmp_path / "home" / "models" / "fastvit-sa12.apple-in1k-fp32").exists()


def test_a_checkpoint_of_another_variant_is_one_line(call: Run, backbone: Path) -> None:
    finished = call("export", "timm/tiny_vit_5m_224.dist_in22k_ft_in1k", "--from", backbone, "--fp32")
    assert finished.code == 1
    assert str(backbone) in finished.error_line()


@pytest.mark.parametrize("option", [("--npu", "intel"), ("--calibration", "."), ("--labels", "there")])
def test_options_of_image_models_are_refused_for_others(
    call: Run, checkpoint: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    (tmp_path / "there").touch()
    finished = call("export", "moondream2", "--from", checkpoint, *option)
    assert finished.code == 2
    assert "moondream2 generates text" in finished.error_line() and option[0] in finished.error_line()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--npu", "hexagon-v99"], "NPU target 'hexagon-v99' is unknown; known: hexagon-v73, hexagon-v75, "),
        (["--npu", "hexagon-v75", "--fp32"], "--npu hexagon-v75 computes in integers; leave out --fp32"),
        (["--npu", "hexagon-v75", "--fp16"], "leave out --fp16"),
        (["--npu", "intel", "--fp32"], "--npu intel computes in float16 or integers; leave out --fp32"),
        (["--npu", "hexagon-v75", "--openvino"], "needs no OpenVINO IR"),
        (["--calibration", "nowhere"], "--calibration nowhere: there is no such folder"),
        (["--calibration", ".", "--fp16"], "--calibration is for int8"),
        (["--labels", "nowhere.txt"], "--labels nowhere.txt: there is no such file"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(call: Run, options: list[str], message: str) -> None:
    finished = call("export", "timm/fastvit_t8.apple_in1k", *options)
    assert (finished.code, finished.out) == (2, "")
    assert message in finished.error_line()


@pytest.mark.parametrize("name", ["timm/", "timm/a/b", "timm/../x"])
def test_what_can_not_be_a_backbone_is_one_line(call: Run, name: str) -> None:
    finished = call("export", name)
    assert finished.code == 3
    assert f"{name}: no name of a timm model" in finished.error_line()


@pytest.mark.parametrize("command", ["export", "pull"])
def test_without_a_network_it_is_one_line(run: Run, command: str) -> None:
    for model, published in (
        ("moondream2", "@"),
        ("timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k@"),
    ):
        finished = run(command, model, HF_HUB_OFFLINE="1")
        assert finished.code == 1
        assert published in finished.error_line()


@pytest.mark.parametrize("command", ["export", "pull"])
def test_a_model_without_a_published_checkpoint_is_one_line(run: Run, command: str) -> None:
    finished = run(command, "moondream2-0.5b")
    assert finished.code == 1
    assert "--from" in finished.error_line()


@pytest.mark.parametrize("command", ["export", "pull"])
def test_an_unknown_model_is_answered_with_the_nearest(run: Run, command: str) -> None:
    finished = run(command, "moondream3")
    assert finished.code == 3
    assert "did you mean moondream2?" in finished.error_line()


@pytest.mark.parametrize("command", ["export", "pull"])
def test_without_the_extra_one_line_says_how_to_get_it(
    run: Run, environment: dict[str, str], tmp_path: Path, command: str
) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "torch.py").write_text("raise ModuleNotFoundError('no torch here', name='torch')\n")
    paths = f"{tmp_path / 'bare'}:{environment['PYTHONPATH']}"
    finished = run(command, "moondream2", PYTHONPATH=paths)
    assert finished.code == 1
    assert finished.error_line() == 'torch is not installed: pip install "edgevlm[export]"'


def test_a_stage_of_tinygpt_v_is_asked_in_a_format_of_its_own(run: Run, tmp_path: Path, scene: Path) -> None:
    from edgevlm_export.families.tinygpt_v.random_weights import write_shrunken

    write_shrunken(tmp_path / "published", stage=3)
    (tmp_path / "published" / "TinyGPT-V_for_Stage3.pth").rename(tmp_path / "published" / "mine.pth")
    export = ("export", "tinygpt-v", tmp_path / "out", "--from", tmp_path / "published", "--fp32")
    assert "say so with --stage" in run(*export).error_line()
    assert "stage 3 knows chat, alignment" in run(*export, "--stage", "3", "--prompts", "inst").error_line()
    finished = run(*export, "--stage", "3", "--prompts", "alignment")
    assert finished.code == 0, finished.err
    assert "alignment" in run("show", tmp_path / "out").out
    assert run("run", scene, "describe", "-m", tmp_path / "out", "-n", "4").code == 0


def test_what_is_published_in_several_places_is_named(run: Run) -> None:
    for command in ("export", "pull"):
        finished = run(command, "tinygpt-v")
        assert finished.code == 1
        for part in ("microsoft/phi-2", "TinyGPT-V_for_Stage4.pth", "eva_vit_g.pth", "--from"):
            assert part in finished.error_line()


def test_options_of_one_family_are_not_for_others(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    finished = run("export", "moondream2", tmp_path / "out", "--from", checkpoint, "--stage", "3")
    assert "--stage is not for moondream2; leave it out" in finished.error_line()
