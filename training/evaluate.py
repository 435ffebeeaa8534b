"""Scores of anything that answers about pictures, on scenes that were drawn for testing only.

`python -m training.evaluate --checkpoint training/nano` scores a float checkpoint in torch. `score_answerer` scores
any object with the methods of `Answerer`, such as a bundle in the runtime.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

from PIL import Image

from training.dialogue import LENGTHS, Box, captions, grounding, questions
from training.drawing import draw
from training.phrases import phrase
from training.questions import TOPICS
from training.scenes import Item, Scene, scene
from training.vocabulary import COLORS

PICTURE_SIDE = 448
_GROUNDINGS = 2


class Answerer(Protocol):
    """What is scored. Answers have `text`; detect gives x_min, y_min, x_max, y_max, point gives x, y, as fractions."""

    def encode(self, image: Image.Image) -> Any: ...
    def caption(self, image: Any, length: str) -> Any: ...
    def query(self, image: Any, question: str) -> Any: ...
    def detect(self, image: Any, name: str) -> Any: ...
    def point(self, image: Any, name: str) -> Any: ...


class Tally:
    """Means by name."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: float) -> None:
        self._values[name].append(value)

    def means(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in sorted(self._values.items())}

    def counts(self) -> dict[str, int]:
        return {name: len(values) for name, values in sorted(self._values.items())}


def score_answerer(answerer: Answerer, n_scenes: int, split: str = "test") -> Tally:
    """Ask everything about the first scenes of a split."""
    tally = Tally()
    for index in range(n_scenes):
        drawn = scene(split, index)
        image = answerer.encode(draw(drawn, PICTURE_SIDE))
        rng = Random(index)
        _score_captions(answerer, image, drawn, tally)
        _score_questions(answerer, image, drawn, tally, rng)
        for _ in range(_GROUNDINGS):
            _score_detect(answerer, image, drawn, tally, rng)
            _score_point(answerer, image, drawn, tally, rng)
    return tally


def _score_captions(answerer: Answerer, image: Any, drawn: Scene, tally: Tally) -> None:
    for length in LENGTHS:
        text = answerer.caption(image, length).text.strip()
        tally.add(f"caption {length}: every object in its color", float(names_all(text, drawn, texts=False)))
        tally.add(f"caption {length}: and with its text", float(names_all(text, drawn, texts=True)))
        tally.add(f"caption {length}: exact", float(text == captions(drawn)[length].answer))


def names_all(text: str, drawn: Scene, *, texts: bool) -> bool:
    """Whether the text names every object with its color, as often as it is there, and no other.

    With `texts` a word or number must be read right as well, without it is enough to say that it is one.
    """
    wanted = Counter(phrase(item) if texts else f"{item.color} {_kind(item)}" for item in drawn.items)
    words = text.replace(",", " ").replace(".", " ").split()
    n_named = sum(word in COLORS for word in words)
    padded = f" {' '.join(words)} "
    return n_named == len(drawn.items) and all(padded.count(f" {name} ") == n for name, n in wanted.items())


def _kind(item: Item) -> str:
    return item.name if item.kind == "shape" else item.kind


def _score_questions(answerer: Answerer, image: Any, drawn: Scene, tally: Tally, rng: Random) -> None:
    for topic in TOPICS:
        options = questions(drawn, rng, topic)
        if options:
            asked = rng.choice(options)
            right = answerer.query(image, asked.prompt).text.strip() == asked.answer
            tally.add(f"query {topic}", float(right))


def _score_detect(answerer: Answerer, image: Any, drawn: Scene, tally: Tally, rng: Random) -> None:
    asked = grounding(drawn, rng, "detect")
    found = [(r.x_min, r.y_min, r.x_max, r.y_max) for r in answerer.detect(image, asked.prompt)]
    if not asked.boxes:
        tally.add("detect: nothing found where nothing is", float(not found))
        return
    tally.add("detect: right number of objects", float(len(found) == len(asked.boxes)))
    for overlap in best_overlaps(asked.boxes, found):
        tally.add("detect: mean IoU", overlap)


def _score_point(answerer: Answerer, image: Any, drawn: Scene, tally: Tally, rng: Random) -> None:
    asked = grounding(drawn, rng, "point", absent=0.0)
    found = [(p.x, p.y) for p in answerer.point(image, asked.prompt)]
    tally.add("point: right number of objects", float(len(found) == len(asked.boxes)))
    for x0, y0, x1, y1 in asked.boxes:
        tally.add("point: inside the object", float(any(x0 <= x <= x1 and y0 <= y <= y1 for x, y in found)))


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return shared / (areas - shared)


def best_overlaps(wanted: Sequence[Box], found: Sequence[Box]) -> list[float]:
    """For each wanted box its overlap with the found one given to it, best pairs first; 0 for those without."""
    pairs = sorted(((iou(w, f), i, k) for i, w in enumerate(wanted) for k, f in enumerate(found)), reverse=True)
    overlaps: dict[int, float] = {}
    taken: set[int] = set()
    for overlap, i, k in pairs:
        if i not in overlaps and k not in taken:
            overlaps[i] = overlap
            taken.add(k)
    return [overlaps.get(i, 0.0) for i in range(len(wanted))]


def main() -> None:
    from training.decoding import load_answerer

    parser = argparse.ArgumentParser(description="Score a float checkpoint of nano.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    tally = score_answerer(load_answerer(options.checkpoint), options.scenes, options.split)
    print(json.dumps({name: round(value, 4) for name, value in tally.means().items()}, indent=2))


if __name__ == "__main__":
    main()
