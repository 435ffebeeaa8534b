"""bench: figures of this machine, and the engine and threads that --tune keeps to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run

TEXT = (
    *("load_ms", "first_ms", "image_ms", "crop_ms", "prefix_ms", "question_ms"),
    *("tokens_per_second", "depth", "peak_rss_bytes"),
)


def test_a_model_is_measured_without_any_argument(run: Run, tmp_path: Path) -> None:
    finished = run("bench", "--repeats", "1")
    assert (finished.code, finished.err) == (0, "")
    header, row = finished.out.splitlines()
    assert header.split()[:5] == ["ENGINE", "THREADS", "LOAD", "FIRST", "IMAGE"]
    assert row.split()[:2] == ["onnxruntime", "1"]
    assert not (tmp_path / "home" / "tuned.json").exists()


def test_figures_add_up(run: Run, bundle: Path, scene: Path) -> None:
    record = json.loads(run("bench", bundle, "--image", scene, "--repeats", "2", "--json", "-t", "1").out)
    assert (record["repeats"], record["tuned"], record["failed"]) == (2, None, [])
    (figures,) = record["settings"]
    assert (figures["engine"], figures["threads"]) == ("onnxruntime", 1)
    assert set(figures) == {"engine", "threads", *TEXT}
    assert all(figures[name] > 0 for name in TEXT)
    # Its own process: Python, the engine and the model, not pytest with torch.
    assert 40e6 < figures["peak_rss_bytes"] < 400e6


def test_tuning_is_used_shown_and_undone(run: Run, classifier: Path, colors: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "home" / "tuned.json"
    file.parent.mkdir()
    file.write_bytes(b'{"damaged')
    tuned = run("bench", classifier, "--tune", "--repeats", "1", "-t", "2", "--json")
    assert tuned.code == 0
    record = json.loads(tuned.out)
    assert {each["engine"] for each in (*record["settings"], *record["failed"])} >= {"onnxruntime"}
    assert all(
        each.keys() == {"engine", "threads", "load_ms", "image_ms", "peak_rss_bytes"} for each in record["settings"]
    )
    assert record["tuned"]["threads"] == 2
    words = f"{record['tuned']['engine']}, 2 threads"
    assert words in run("show", classifier).out
    ask = ("classify", colors["red"], "-m", classifier, "--verbose")
    assert f"edgevlm: tuned: {words}" in run(*ask).err
    assert "tuned" not in run(*ask, "--engine", "onnxruntime", "-t", "1").err
    assert run("bench", classifier, "--forget").error_line().startswith("dropped what")
    assert run("bench", classifier, "--forget").error_line().startswith("nothing")
    assert "tuned" not in run(*ask).err + run("show", classifier).out


def test_doctor_tells_of_tuned_models(run: Run) -> None:
    assert run("bench", "nano", "--tune", "--repeats", "1").code == 0
    assert "tuned: " in run("doctor").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tune", "--forget"], "--forget and --tune exclude each other"),
        (["--repeats", "0"], "repeats is 0"),
        (["--engine", "abacus"], "engine 'abacus' is unknown"),
        (["--engine", "abacus", "--tune"], "engine 'abacus' is unknown"),
        (["-t", "0"], "threads is 0"),
    ],
)
def test_what_can_not_be_measured_is_one_line(call: Run, arguments: list[str], message: str) -> None:
    finished = call("bench", *arguments)
    assert (finished.code, finished.out) == (2, "")
    assert message in finished.error_line()


def test_an_error_of_the_measuring_process_is_one_line(call: Run, copied: Path) -> None:
    weights = max(copied.glob("decoder*"), key=lambda path: path.stat().st_size)
    weights.write_bytes(weights.read_bytes()[:-1])
    finished = call("bench", copied)
    assert finished.code == 3
    assert str(weights) in finished.error_line()
