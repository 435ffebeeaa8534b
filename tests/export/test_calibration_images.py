"""Images to calibrate on: drawn, or a folder's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm_export import calibration_images as module
from edgevlm_export.calibration_images import MOST, calibration_images, golden_images
from edgevlm_runtime.errors import BadImage, ExportError
from edgevlm_runtime.image import Pixels, load_image


@pytest.fixture(scope="module")
def drawn() -> list[Pixels]:
    return calibration_images(None)


def test_drawn_images_are_the_same_each_time(drawn: list[Pixels]) -> None:
    again = calibration_images(None)
    assert len(drawn) == len(again) >= 24
    assert all(np.array_equal(*pair) for pair in zip(drawn, again, strict=True))
    assert golden_images() == golden_images()


def test_drawn_images_are_varied(drawn: list[Pixels]) -> None:
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 and min(image.shape[:2]) >= 224 for image in drawn)
    brightness = [image.mean() for image in drawn]
    assert min(brightness) < 80 and max(brightness) > 170
    colors = [image.mean(axis=(0, 1)) for image in drawn]
    assert {int(np.argmax(color)) for color in colors} == {0, 1, 2}
    rough = [np.abs(np.diff(image.astype(float), axis=0)).mean() for image in drawn]
    assert max(rough) > 8 * min(rough)


def test_golden_images_are_small_and_not_calibrated_on(drawn: list[Pixels]) -> None:
    golden = golden_images()
    assert len(golden) >= 6 and sum(map(len, golden)) < 500_000
    seen = {image[:100, :100].tobytes() for image in drawn}
    assert not any(load_image(png)[:100, :100].tobytes() in seen for png in golden)


def test_the_images_of_this_repository_are_among_them(drawn: list[Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    examples = sorted((Path(__file__).parents[2] / "examples").glob("*.png"))
    assert examples
    for path in examples:
        assert any(np.array_equal(load_image(path), image) for image in drawn)
    monkeypatch.setattr(module, "_EXAMPLES", Path("/no/such/folder"))  # as in an installed wheel
    assert len(calibration_images(None)) == 24


def save(folder: Path, name: str, gray: int) -> None:
    Image.new("RGB", (20, 10), (gray, gray, gray)).save(folder / name)


def test_a_folder_gives_its_images_by_name_and_keeps_every_eighth_for_verification(tmp_path: Path) -> None:
    for index in range(90):
        save(tmp_path, f"{index:03d}.PNG", index)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    grays = [image[0, 0, 0] for image in calibration_images(tmp_path)]
    assert grays == [index for index in range(90) if index % 8 != 7][:MOST]
    assert [load_image(png)[0, 0, 0] for png in golden_images(tmp_path)] == [7, 15, 23, 31, 39, 47]


def test_a_folder_of_few_images(tmp_path: Path) -> None:
    save(tmp_path, "a.png", 1)
    assert [load_image(png)[0, 0, 0] for png in golden_images(tmp_path)] == [1]
    assert len(calibration_images(tmp_path)) == 1
    save(tmp_path, "b.png", 2)
    assert [load_image(png)[0, 0, 0] for png in golden_images(tmp_path)] == [2]
    assert [image[0, 0, 0] for image in calibration_images(tmp_path)] == [1]


def test_golden_images_of_a_folder_are_small(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 1000), (9, 9, 9)).save(tmp_path / "large.png")
    assert load_image(golden_images(tmp_path)[0]).shape == (60, 240, 3)


def test_an_image_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    save(tmp_path, "b.png", 1)
    (tmp_path / "a.png").write_bytes(b"nothing")
    with pytest.raises(BadImage, match=r"a\.png"):
        calibration_images(tmp_path)
    (tmp_path / "c.png").write_bytes(b"nothing")  # the one to verify on
    with pytest.raises(BadImage, match=r"c\.png"):
        golden_images(tmp_path)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no image"):
        calibration_images(tmp_path)
    with pytest.raises(ExportError, match=r"missing: can not be read"):
        calibration_images(tmp_path / "missing")
