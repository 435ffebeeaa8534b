"""detect, point: fractions of the upright image, drawn where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import edgevlm
from tests.cli.conftest import Run


def _places(run: Run, *arguments: object) -> Any:
    finished = run(*arguments, "--json")
    assert finished.code == 0, finished.err
    return json.loads(finished.out)


def test_boxes_are_those_of_the_library(run: Run, scene: Path, bundle: Path) -> None:
    expected = edgevlm.load(bundle, threads=1).detect(scene, "circle").objects
    record = _places(run, "detect", scene, "circle", "-m", bundle)
    assert record["objects"] == [vars(box) for box in expected]
    assert set(record) == {"model", "objects", "usage", "timings"}
    lines = run("detect", scene, "circle", "-m", bundle).out.splitlines()
    assert [line.split() for line in lines] == [[f"{value:.4f}" for value in vars(box).values()] for box in expected]


def test_points_are_those_of_the_library(run: Run, scene: Path, bundle: Path) -> None:
    expected = edgevlm.load(bundle, threads=1).point(scene, "square").points
    record = _places(run, "point", scene, "square", "-m", bundle)
    assert record["points"] == [vars(point) for point in expected]


@pytest.mark.parametrize(("command", "key"), [("detect", "objects"), ("point", "points")])
def test_coordinates_are_those_of_the_upright_image(
    run: Run, scene: Path, bundle: Path, tmp_path: Path, command: str, key: str
) -> None:
    turned = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    with Image.open(scene) as upright:
        upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "sideways.png")
    arguments = ("circle", "-m", bundle)
    expected = _places(run, command, scene, *arguments)[key]
    assert _places(run, command, turned, *arguments)[key] == expected
    assert expected
    assert _places(run, command, tmp_path / "sideways.png", *arguments)[key] != expected


@pytest.mark.parametrize("command", ["detect", "point"])
def test_places_are_drawn_on_the_upright_image(
    run: Run, scene: Path, bundle: Path, tmp_path: Path, command: str
) -> None:
    out = tmp_path / "drawn.jpg"
    finished = run(command, scene, "circle", "-m", bundle, "--draw", out)
    assert finished.code == 0
    assert finished.err == f"edgevlm: drawn on {out}\n"
    with Image.open(out) as drawn, Image.open(scene) as source:
        assert (drawn.format, drawn.size) == ("JPEG", source.size)
        difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(source))
    assert difference.max() > 100


def test_a_full_disk_is_one_line_and_leaves_nothing(run: Run, scene: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "full.png"
    out.symlink_to("/dev/full")
    finished = run("detect", scene, "circle", "-m", bundle, "--draw", out)
    assert finished.code == 1
    assert finished.error_line() == f"--draw {out}: can not be written: No space left on device"


@pytest.mark.parametrize("name", ["scene.png", "drawn.txt", "nowhere/drawn.png"])
def test_what_can_not_be_drawn_on_is_refused_before_any_work(run: Run, scene: Path, tmp_path: Path, name: str) -> None:
    before = scene.read_bytes()
    finished = run("detect", scene, "circle", "-m", "nowhere", "--draw", tmp_path / name)
    assert finished.code == 2
    assert str(tmp_path / name) in finished.error_line()
    assert scene.read_bytes() == before
