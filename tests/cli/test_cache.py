"""The encoded images that commands keep: the same answers after a restart, cache ls, cache clear, homes that fail."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from PIL import Image

import edgevlm
from tests.cli.conftest import Run

READ = "edgevlm: image cache: read "
SAVED = "edgevlm: image cache: saved "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the images of the tests' home go."""
    return tmp_path / "home" / "cache" / "images"


def test_a_restart_answers_the_same_without_encoding(run: Run, scene: Path, bundle: Path, folder: Path) -> None:
    question = ("query", scene, "what is red?", "-m", bundle, "--json", "--verbose")
    plain = run(*question, "--no-cache")
    assert not folder.exists() and "image cache" not in plain.err
    first, second = run(*question), run(*question)
    assert SAVED in first.err and READ not in first.err
    assert READ in second.err and SAVED not in second.err
    answers = [json.loads(finished.out) for finished in (plain, first, second)]
    assert len({json.dumps([each["token_ids"], each["text"], each["usage"]]) for each in answers}) == 1
    assert READ in run("detect", scene, "circle", "-m", bundle, "--verbose").err, "whatever is asked"
    assert len(list(folder.iterdir())) == 1


def test_the_same_pixels_in_another_file(call: Run, scene: Path, bundle: Path, tmp_path: Path) -> None:
    call("caption", scene, "-m", bundle)
    Image.open(scene).save(tmp_path / "again.bmp")
    assert READ in call("caption", tmp_path / "again.bmp", "-m", bundle, "--verbose").err
    Image.open(scene).rotate(180).save(tmp_path / "turned.png")
    assert READ not in call("caption", tmp_path / "turned.png", "-m", bundle, "--verbose").err


def test_ls_and_clear(call: Run, scene: Path, bundle: Path, folder: Path) -> None:
    empty = call("cache", "ls")
    assert (empty.code, empty.out) == (0, "")
    assert empty.error_line() == f"0 images, 0 B of 2.0 GB, in {folder}"
    call("caption", scene, "-m", bundle)
    name = edgevlm.load(bundle).manifest.name
    (path,) = folder.iterdir()
    os.utime(path, (time.time() - 7300, time.time() - 7300))
    (folder / "broken.image").write_bytes(b"?")
    listed = call("cache", "ls")
    header, broken, row = listed.out.splitlines()
    assert header.split() == ["KEY", "MODEL", "IMAGE", "SIZE", "LAST", "USED"]
    assert broken.split() == ["broken", "damaged", "1", "B", "just", "now"]
    assert row.startswith(path.stem[:12])
    assert name in row and "160 x 120" in row and row.endswith("2 h ago")
    record = json.loads(call("cache", "ls", "--json").out)
    assert (record["path"], record["limit_bytes"]) == (str(folder), 2 * 10**9)
    assert record["images"][1]["bytes"] == path.stat().st_size
    assert record["images"][1]["image"]["width"] == 160
    assert 7290 < record["images"][1]["age_s"] < 7400
    cleared = call("cache", "clear")
    assert (cleared.code, cleared.out) == (0, "")
    assert cleared.error_line().startswith("removed 2 images, ")
    assert list(folder.iterdir()) == []


def test_a_damaged_image_is_made_again_without_a_word(call: Run, scene: Path, bundle: Path, folder: Path) -> None:
    expected = call("caption", scene, "-m", bundle)
    (path,) = folder.iterdir()
    good = path.read_bytes()
    for verbose in ((), ("--verbose",)):
        path.write_bytes(good[: len(good) // 2])
        finished = call("caption", scene, "-m", bundle, *verbose)
        assert (finished.code, finished.out) == (0, expected.out)
        assert ("dropped" in finished.err) == bool(verbose)
        assert path.read_bytes() == good
    assert expected.err == ""


def test_a_home_that_can_not_be_written_is_no_error(run: Run, scene: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_bytes(b"a file")
    finished = run("caption", scene, "-m", bundle)
    assert (finished.code, finished.err) == (0, "")
    assert "image cache: " in run("caption", scene, "-m", bundle, "--verbose").err
    assert run("cache", "ls").code == run("cache", "clear").code == 0


def test_the_size_is_a_setting(run: Run, scene: Path, bundle: Path, folder: Path) -> None:
    assert run("caption", scene, "-m", bundle, EDGEVLM_CACHE_GB="0").code == 0
    assert not folder.exists()
    finished = run("caption", scene, "-m", bundle, EDGEVLM_CACHE_GB="lots")
    assert finished.code == 2
    assert "EDGEVLM_CACHE_GB must be a number" in finished.error_line()


def test_a_library_keeps_images_when_asked_to(
    scene: Path, bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path / "home"))
    with edgevlm.load(bundle, threads=1) as model:
        plain = model.caption(scene)
    assert not folder.exists()
    for _ in range(2):
        with edgevlm.load(bundle, threads=1, image_cache=True) as model:
            assert model.caption(scene).token_ids == plain.token_ids
        assert len(list(folder.iterdir())) == 1


def test_without_a_subcommand_cache_says_what_is_missing(run: Run) -> None:
    finished = run("cache")
    assert finished.code == 2
    assert "Missing command" in finished.error_line()
