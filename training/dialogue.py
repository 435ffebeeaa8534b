"""A scene to what can be asked about it and the right answers."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from training.phrases import caption, fits, noun, plural
from training.questions import NOUNS, TOPICS
from training.scenes import Scene
from training.vocabulary import COLORS, SHAPES

Box = tuple[float, float, float, float]
LENGTHS = ("short", "normal", "long")
_WEIGHTS = {
    "color": 2.0,
    "shape": 1.0,
    "count": 2.6,
    "count all": 0.8,
    "where": 1.4,
    "exists": 1.6,
    "compare": 0.7,
    "size": 0.6,
    "read word": 1.5,
    "read number": 1.2,
    "read handwritten": 1.2,
    "background": 0.5,
    "edge": 0.5,
    "describe": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One prompt and its answer. task: caption, query, detect or point; topic says what is asked, for the scores."""

    task: str
    topic: str
    prompt: str
    """Caption length, question, or object."""
    answer: str = ""
    boxes: tuple[Box, ...] = ()


def captions(scene: Scene) -> dict[str, Exchange]:
    """One caption for each length."""
    return {n: Exchange(task="caption", topic=n, prompt=n, answer=caption(scene, n)) for n in LENGTHS}


def exchange(scene: Scene, rng: Random) -> Exchange:
    """One random exchange about the scene."""
    task = rng.choices(("caption", "query", "detect", "point"), (3.0, 8.0, 2.2, 1.4))[0]
    if task == "caption":
        length = rng.choices(LENGTHS, (4, 2, 1))[0]
        return captions(scene)[length]
    if task == "query":
        return question(scene, rng)
    return grounding(scene, rng, task)


def question(scene: Scene, rng: Random) -> Exchange:
    """A random question; one that the scene does not allow becomes a question of how many."""
    topic = rng.choices(list(TOPICS), list(_WEIGHTS.values()))[0]
    return rng.choice(questions(scene, rng, topic) or questions(scene, rng, "count"))


def questions(scene: Scene, rng: Random, topic: str) -> list[Exchange]:
    """All questions of a topic that have one right answer in this scene, each in a random phrasing."""
    return [
        Exchange(task="query", topic=topic, prompt=_casual(asked, rng), answer=answer)
        for asked, answer in TOPICS[topic](scene, rng)
    ]


def grounding(scene: Scene, rng: Random, task: str, *, absent: float = 0.12) -> Exchange:
    """An object to detect or point at; with probability `absent` one that is probably not there."""
    if rng.random() < absent or not scene.items:
        name = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}" if rng.random() < 0.7 else rng.choice(NOUNS)
    else:
        item = rng.choice(scene.items)
        names = (f"{item.color} {noun(item)}", noun(item), f"{item.color} object", "object")
        name = rng.choices(names, (8, 4, 1, 1))[0]
    boxes = tuple(item.box for item in scene.items if fits(item, name))
    spoken = plural(name) if rng.random() < 0.3 else name
    return Exchange(task=task, topic=task, prompt=spoken, boxes=boxes)


def _casual(text: str, rng: Random) -> str:
    """As people type: with or without a capital and a question mark, in either spelling."""
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text = text.rstrip("?.")
    return text.replace("color", "colour") if rng.random() < 0.25 else text
