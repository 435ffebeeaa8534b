"""What is asked has one right answer, and it is the right one."""

from __future__ import annotations

from random import Random

import pytest

from training.dialogue import captions, exchange, grounding, questions
from training.evaluate import names_all
from training.phrases import place
from training.questions import TOPICS
from training.scenes import Item, Scene, scene


def _item(name: str, color: str, box: tuple[float, float, float, float], size: str = "small") -> Item:
    return Item(kind="shape", name=name, color=color, size=size, box=box)


_SCENE = Scene(
    seed=0,
    aspect=1.0,
    tone="light",
    pattern="striped",
    items=(
        _item("circle", "red", (0.05, 0.05, 0.25, 0.25)),
        Item(kind="word", name="cat", color="blue", size="", box=(0.3, 0.4, 0.7, 0.6)),
        _item("star", "red", (0.7, 0.7, 0.95, 0.95), size="large"),
        _item("star", "red", (0.8, 0.1, 0.95, 0.25)),
    ),
)


def test_captions() -> None:
    said = {length: one.answer for length, one in captions(_SCENE).items()}
    assert said["short"] == 'A red circle, a blue word "cat", a red star and another red star.'
    assert said["normal"].endswith("another small red star on a light striped background.")
    assert said["long"].startswith("Four objects on a light striped background. A small red circle is at the top left.")


def test_captions_name_all_objects() -> None:
    for index in range(30):
        drawn = scene("val", index)
        for one in captions(drawn).values():
            assert names_all(one.answer, drawn, texts=True) and names_all(one.answer, drawn, texts=False)
        assert not names_all("A green moon.", drawn, texts=False)


@pytest.mark.parametrize(
    ("topic", "answers"),
    [
        ("color", {"Red", "Blue"}),
        ("count all", {"4"}),
        ("read word", {"cat"}),
        ("background", {"Light striped"}),
        ("where", {"Top left", "Center"}),
        ("read number", set()),
    ],
)
def test_answers(topic: str, answers: set[str]) -> None:
    assert {one.answer for one in questions(_SCENE, Random(0), topic)} == answers


def test_yes_means_it_is_there() -> None:
    for seed in range(20):
        for one in questions(_SCENE, Random(seed), "exists"):
            there = any(name in one.prompt for name in ("red circle", "red star", "blue word"))
            bare = any(f"a {name}" in one.prompt.lower() for name in ("circle", "star", "word"))
            assert (one.answer == "Yes") == (there or bare), one


def test_places() -> None:
    assert [place(item) for item in _SCENE.items] == ["top left", "center", "bottom right", "top right"]


def test_grounding_lists_all_from_left_to_right() -> None:
    for seed in range(30):
        one = grounding(_SCENE, Random(seed), "detect")
        assert list(one.boxes) == sorted(one.boxes, key=lambda box: box[0] + box[2])
        if one.prompt in ("star", "stars", "red star", "red stars"):
            assert len(one.boxes) == 2


def test_exchanges_repeat_with_the_seed() -> None:
    first, second = ([exchange(_SCENE, rng) for _ in range(20)] for rng in (Random(5), Random(5)))
    assert first == second
    assert {one.topic for one in first} <= {*TOPICS, "short", "normal", "long", "detect", "point"}
