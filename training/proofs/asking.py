"""What the shrunken models are taught and asked: questions whose answers need no reading, and captions of shapes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training.dialogue import Exchange, captions, questions
from training.scenes import Scene

WEIGHTS = {
    "color": 2.0,
    "shape": 1.0,
    "count": 2.6,
    "count all": 0.8,
    "where": 1.8,
    "exists": 1.6,
    "compare": 0.8,
    "size": 0.8,
    "background": 0.6,
    "edge": 1.0,
}
"""Topics and how often each is taught."""
_CAPTIONS = 0.1  # of what is taught
_LENGTHS = {"short": 4.0, "normal": 2.0, "long": 1.0}


class Teacher:
    """Chooses exchanges about scenes; `lengths` are those of captions that the model has prompts for."""

    def __init__(self, lengths: Sequence[str]) -> None:
        self._lengths = list(lengths)

    def __call__(self, scene: Scene, rng: Random) -> Exchange:
        """A random exchange; where the scene does not allow a topic, a question of how many."""
        if rng.random() < _CAPTIONS and all(item.kind == "shape" for item in scene.items):
            length = rng.choices(self._lengths, [_LENGTHS[name] for name in self._lengths])[0]
            return captions(scene)[length]
        topic = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        return rng.choice(asked(scene, rng, topic) or asked(scene, rng, "count"))


def asked(scene: Scene, rng: Random, topic: str) -> list[Exchange]:
    """All questions of a topic whose answer is not a text in the scene."""
    found = questions(scene, rng, topic)
    return [one for one in found if topic != "edge" or not _quotes(one.answer)]


def _quotes(answer: str) -> bool:
    return any(letter == '"' or letter.isdigit() for letter in answer)
