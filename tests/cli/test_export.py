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
    finished = run("export", "Moondream2", "--from", checkpoint, "--fp32", "--verbose")
    assert finished.code == 0, finished.err
    assert finished.err.startswith("edgevlm: open checkpoint\n")
    bundle = tmp_path / "home" / "models" / "moondream2-fp32"
    assert finished.out == f"{bundle}\n"
    assert "relative error" in finished.err
    assert "Traceback" not in finished.err
    assert run("run", scene, "describe", "-m", "moondream2", "-n", "4").code == 0
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


@pytest.mark.parametrize("command", ["export", "pull"])
def test_without_a_network_it_is_one_line(run: Run, command: str) -> None:
    finished = run(command, "moondream2", HF_HUB_OFFLINE="1")
    assert finished.code == 1
    assert "@" in finished.error_line()


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
