"""Scenes are the same for the same seed, splits share nothing, and ground truth is what is drawn."""

from __future__ import annotations

import numpy
import pytest
from PIL import Image

from training import handwriting
from training.cache import CROP, crop_pixels
from training.drawing import draw
from training.scenes import MAX_ITEMS, SPLITS, Item, scene
from training.vocabulary import COLORS

_SEEN = [scene("test", index) for index in range(40)]


def test_same_seed_same_scene_and_pixels() -> None:
    first, second = (draw(scene("val", 7), 160) for _ in range(2))
    assert scene("val", 7) == scene("val", 7)
    assert first.tobytes() == second.tobytes()


def test_splits_are_disjoint() -> None:
    seeds = {split: {scene(split, index).seed for index in range(50)} for split in SPLITS}
    assert len(set.union(*seeds.values())) == 50 * len(SPLITS)
    with pytest.raises(ValueError):
        scene("train", 10_000_000)


def test_handwritten_samples_belong_to_one_split() -> None:
    samples = {split: {s for digit in range(10) for s in handwriting.of(digit, split)} for split in SPLITS}
    assert sum(len(found) for found in samples.values()) == len(set.union(*samples.values())) == 1797


def test_items_are_inside_ordered_and_apart() -> None:
    for drawn in _SEEN:
        assert 0 < len(drawn.items) <= MAX_ITEMS
        centers = [item.center[0] for item in drawn.items]
        assert centers == sorted(centers)
        for item in drawn.items:
            x0, y0, x1, y1 = item.box
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1


@pytest.mark.parametrize("index", range(12))
def test_boxes_contain_the_drawn_color(index: int) -> None:
    drawn = _SEEN[index]
    picture = draw(drawn, 320)
    for item in drawn.items:
        assert _share_of_color(picture, item) > (0.2 if item.kind == "shape" else 0.04), item


def _share_of_color(picture: Image.Image, item: Item) -> float:
    """Share of the box whose pixels are nearer to the item's color than to anything far from it."""
    x0, y0, x1, y1 = item.box
    box = (int(x0 * picture.width), int(y0 * picture.height), int(x1 * picture.width), int(y1 * picture.height))
    pixels = numpy.asarray(picture.crop(box), numpy.float32)
    distance = numpy.linalg.norm(pixels - numpy.array(COLORS[item.color], numpy.float32), axis=-1)
    return float((distance < 70).mean())


def test_crops_have_the_models_size() -> None:
    assert crop_pixels(draw(_SEEN[0], 200)).shape == (CROP, CROP, 3)
