"""embed: vectors of images and texts, printed or saved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import Run
from tests.cli.image_bundles import write_dual_encoder

Colors = dict[str, Path]
RED = np.array((1, -1, -1), np.float32)
GREEN = np.array((-1, 1, -1), np.float32)
LENGTH = np.float32(np.sqrt(3))


def _vectors(out: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array([[float(number) for number in line.split(" ")] for line in out.splitlines()], np.float32)


def test_a_vector_is_one_line(call: Run, classifier: Path, colors: Colors) -> None:
    finished = call("embed", colors["red"], "-m", classifier)
    assert (finished.code, finished.err) == (0, "")
    assert finished.out == "1.0 -1.0 -1.0\n", "a classifier's features are as they are"


def test_images_and_texts_stay_in_order(run: Run, dual_encoder: Path, colors: Colors) -> None:
    inputs = ("green", colors["red"], "a red", "-", colors["green"])
    finished = run("embed", *inputs, "-m", dual_encoder, stdin=colors["green"].read_bytes())
    assert finished.code == 0, finished.err
    np.testing.assert_allclose(_vectors(finished.out), np.stack([GREEN, RED, RED, GREEN, GREEN]) / LENGTH, atol=1e-6)


def test_json_and_printed_digits_are_the_saved_bits(
    call: Run, dual_encoder: Path, colors: Colors, tmp_path: Path
) -> None:
    arguments = ("embed", colors["red"], "a green", "-m", dual_encoder)
    saved = call(*arguments, "--out", tmp_path / "x.npy")
    assert (saved.code, saved.out) == (0, "")
    assert "x.npy, float32 (2, 3)" in saved.err
    vectors = np.load(tmp_path / "x.npy")
    assert vectors.dtype == np.float32 and vectors.shape == (2, 3)
    record = json.loads(call(*arguments, "--json").out)
    assert (record["model"], record["dim"]) == ("colorwords", 3)
    assert record["inputs"] == [str(colors["red"]), "a green"]
    np.testing.assert_array_equal(np.array(record["embeddings"], np.float32), vectors)
    np.testing.assert_array_equal(_vectors(call(*arguments).out), vectors)


def test_one_vector_is_saved_without_an_axis_of_inputs(
    call: Run, classifier: Path, colors: Colors, tmp_path: Path
) -> None:
    out = tmp_path / "x.npy"
    out.write_bytes(b"an older file")
    finished = call("embed", colors["red"], "-m", classifier, "--out", out, "--json")
    assert json.loads(finished.out) == {"model": "colors", "inputs": [str(colors["red"])], "dim": 3, "out": str(out)}
    np.testing.assert_array_equal(np.load(out), RED)
    assert [path.name for path in tmp_path.iterdir() if "x.npy" in path.name] == ["x.npy"], "nothing half-written"


@pytest.mark.parametrize("given", ["nowhere.png", "photos/nowhere.JPG", "colors-of-images/"])
def test_what_looks_like_an_image_is_no_text(call: Run, dual_encoder: Path, colors: Colors, given: str) -> None:
    finished = call("embed", given, "-m", dual_encoder)
    assert (finished.code, finished.out) == (4, "")
    assert given.rstrip("/") in finished.error_line()


def test_a_model_without_texts_says_so(call: Run, colors: Colors, tmp_path: Path) -> None:
    eyes = write_dual_encoder(tmp_path / "eyes", texts=False)
    finished = call("embed", colors["red"], "a red bicycle", "-m", eyes)
    assert (finished.code, finished.out) == (4, "")
    assert finished.error_line() == "a red bicycle: there is no such file, and eyes reads no texts; give an image"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x.txt", "saved as .npy"),
        ("nowhere/x.npy", "the folder nowhere does not exist"),
        ("folder.npy", "is a folder"),
        ("input.npy", "is one of the inputs"),
    ],
)
def test_an_output_that_can_not_be_written_is_refused_first(
    call: Run, classifier: Path, colors: Colors, tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "folder.npy").mkdir()
    image = tmp_path / "input.npy"  # an image whatever its name
    image.write_bytes(colors["red"].read_bytes())
    finished = call("embed", image, "-m", classifier, "--out", out)
    assert (finished.code, finished.out) == (2, "")
    assert message in finished.error_line()
    assert image.read_bytes() == colors["red"].read_bytes()


def test_a_blank_text_is_one_line(call: Run, dual_encoder: Path) -> None:
    finished = call("embed", "  ", "-m", dual_encoder)
    assert finished.code == 2
    assert "the text is empty" in finished.error_line()
