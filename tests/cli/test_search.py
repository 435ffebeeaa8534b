"""search: the images of a folder, ranked by a text."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.cli.conftest import Run

Colors = dict[str, Path]


def test_the_best_image_comes_first(call: Run, dual_encoder: Path, colors: Colors) -> None:
    folder = colors["red"].parent
    finished = call("search", folder, "something blue", "-m", dual_encoder)
    assert (finished.code, finished.err) == (0, "")
    # A blue image's cosine with blue is 1, that of the others -1/3; equal ones are in the order of their names.
    assert finished.out == f"1.0000  {colors['blue']}\n-0.3333  {colors['green']}\n-0.3333  {colors['red']}\n"
    first = call("search", folder, "red", "-m", dual_encoder, "-k", "1")
    assert first.out == f"1.0000  {colors['red']}\n"


def test_vectors_are_kept_beside_the_images_and_follow_them(call: Run, dual_encoder: Path, colors: Colors) -> None:
    folder = colors["red"].parent
    call("search", folder, "red", "-m", dual_encoder)
    (cache,) = (folder / ".edgevlm").iterdir()
    before = cache.read_bytes()
    assert call("search", folder, "blue", "-m", dual_encoder).out.startswith(f"1.0000  {colors['blue']}\n")
    assert cache.read_bytes() == before
    colors["red"].write_bytes(colors["blue"].read_bytes())
    changed = call("search", folder, "blue", "-m", dual_encoder, "-k", "2")
    assert changed.out == f"1.0000  {colors['blue']}\n1.0000  {colors['red']}\n"


def test_what_can_not_be_read_is_skipped_counted_and_named(run: Run, dual_encoder: Path, colors: Colors) -> None:
    bad = colors["red"].with_name("bad.jpg")
    bad.write_bytes(b"not an image")
    finished = run("search", bad.parent, "red", "-m", dual_encoder)
    assert finished.code == 0
    assert finished.out.count("\n") == 3 and "bad.jpg" not in finished.out
    count, named = finished.err.splitlines()
    assert count == "edgevlm: 1 of 4 images could not be read:"
    assert named.startswith(f"  {bad}: not an image")


def test_json_is_one_object(call: Run, dual_encoder: Path, colors: Colors) -> None:
    bad = colors["red"].with_name("bad.jpg")
    bad.write_bytes(b"")
    record = json.loads(call("search", bad.parent, "red", "-m", dual_encoder, "-k", "1", "--json").out)
    assert (record["model"], record["n_images"]) == ("colorwords", 3)
    (hit,) = record["hits"]
    assert hit["path"] == str(colors["red"]) and hit["score"] == pytest.approx(1, abs=1e-6)
    (skipped,) = record["skipped"]
    assert skipped["path"] == str(bad) and "empty" in skipped["reason"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written_is_searched_without_a_cache(
    call: Run, dual_encoder: Path, colors: Colors
) -> None:
    folder = colors["red"].parent
    folder.chmod(0o555)
    finished = call("search", folder, "red", "-m", dual_encoder)
    folder.chmod(0o755)
    assert (finished.code, finished.err) == (0, "")
    assert not (folder / ".edgevlm").exists()


@pytest.mark.parametrize(
    ("folder", "text", "message"),
    [
        ("empty", "red", "no images in it"),
        ("nowhere", "red", "not a folder"),
        ("colors-of-images/red.png", "red", "not a folder"),
        ("colors-of-images", " ", "the text is empty"),
    ],
)
def test_what_can_not_be_searched_is_one_line_and_exit_2(
    call: Run, dual_encoder: Path, colors: Colors, tmp_path: Path, folder: str, text: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    finished = call("search", folder, text, "-m", dual_encoder)
    assert (finished.code, finished.out) == (2, "")
    assert message in finished.error_line()


def test_a_model_that_reads_no_texts_says_what_it_can(call: Run, classifier: Path, colors: Colors) -> None:
    finished = call("search", colors["red"].parent, "red", "-m", classifier)
    assert finished.code == 1
    assert finished.error_line() == "colors can not search; it can: classify, embed"
