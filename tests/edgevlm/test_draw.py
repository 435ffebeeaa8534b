"""Boxes and points are drawn where they are, readably, and the file is written or nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm import draw
from edgevlm_runtime.answer import Box, Point
from edgevlm_runtime.errors import EdgeVLMError, InvalidOption


def _plain(height: int, width: int, value: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return np.full((height, width, 3), value, np.uint8)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_a_frame_lies_on_its_box_and_stands_out(background: int) -> None:
    box = Box(x_min=0.25, y_min=0.5, x_max=0.75, y_max=0.9)
    drawn = np.asarray(draw.draw_places(_plain(200, 400, background), [box], "")).astype(int)
    middle_row = drawn[140]
    changed = np.flatnonzero((middle_row != background).any(axis=1))
    assert abs(changed.min() - 100) <= 3
    assert abs(changed.max() - 300) <= 3
    contrast = np.abs(middle_row - background).max(axis=1)
    assert contrast.max() > 100, "the frame can not be seen"
    assert not contrast[120:280].any(), "the inside of the box is covered"


def test_a_point_is_drawn_at_its_place() -> None:
    drawn = np.asarray(draw.draw_places(_plain(300, 300, 255), [Point(x=0.25, y=0.75)], ""))
    rows, columns = np.nonzero((drawn[:, :, 2] < 100) & (drawn[:, :, 0] > 200))
    assert abs(rows.mean() - 224) < 4
    assert abs(columns.mean() - 75) < 4


def test_a_box_that_leaves_the_image_is_cut() -> None:
    box = Box(x_min=-0.5, y_min=-0.2, x_max=1.5, y_max=1.2)
    drawn = np.asarray(draw.draw_places(_plain(100, 100, 0), [box], "cup"))
    assert drawn[50, 0].any() and drawn[50, 99].any()


def test_lines_are_wider_on_large_images() -> None:
    box = Box(x_min=0.2, y_min=0.2, x_max=0.8, y_max=0.8)

    def colored(side: int) -> int:
        row = np.asarray(draw.draw_places(_plain(side, side, 0), [box], ""))[side // 2]
        return int(row.any(axis=1).sum())

    assert colored(2000) >= 4 * colored(200)


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP")])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, kind: str) -> None:
    out = tmp_path / f"out{suffix}"
    draw.save(Image.new("RGB", (8, 8)), out)
    with Image.open(out) as written:
        assert written.format == kind


def test_the_input_is_not_overwritten(tmp_path: Path) -> None:
    source = tmp_path / "photo.png"
    source.write_bytes(b"x")
    link = tmp_path / "link.png"
    link.symlink_to(source)
    for out in (source, link):
        with pytest.raises(InvalidOption, match="is the image itself"):
            draw.check_target(out, str(source))


@pytest.mark.parametrize(
    ("name", "message"),
    [("out", "no suffix"), ("out.txt", ".txt is no image format"), ("no/out.png", "does not exist")],
)
def test_a_target_that_can_not_be_written_is_refused_before(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        draw.check_target(tmp_path / name, "photo.png")


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    out = tmp_path / "full.png"
    out.symlink_to("/dev/full")
    with pytest.raises(EdgeVLMError, match=r"full\.png: can not be written: No space left on device"):
        draw.save(Image.new("RGB", (8, 8)), out)
