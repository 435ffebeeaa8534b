"""The scorer gives full marks to one who knows, and none to one who says nothing."""

from __future__ import annotations

from dataclasses import dataclass

from training.evaluate import best_overlaps, iou, names_all, score_answerer
from training.scenes import Item, Scene


@dataclass
class _Text:
    text: str


class _Silent:
    def encode(self, image: object) -> None:
        return None

    def caption(self, image: object, length: str) -> _Text:
        return _Text("")

    def query(self, image: object, question: str) -> _Text:
        return _Text("")

    def detect(self, image: object, name: str) -> list[object]:
        return []

    point = detect


def test_silence_scores_nothing() -> None:
    means = score_answerer(_Silent(), 3).means()
    assert not any(value for name, value in means.items() if "nothing" not in name)


def test_overlap_of_boxes() -> None:
    a, b = (0.0, 0.0, 0.5, 0.5), (0.25, 0.0, 0.75, 0.5)
    assert iou(a, a) == 1.0
    assert abs(iou(a, b) - 1 / 3) < 1e-9
    assert best_overlaps([a, b], [b]) == [0.0, 1.0]
    assert best_overlaps([a], []) == [0.0]


def test_a_misread_word_is_still_named() -> None:
    word = Item(kind="word", name="cat", color="red", size="", box=(0.1, 0.1, 0.5, 0.3))
    star = Item(kind="shape", name="star", color="blue", size="large", box=(0.6, 0.6, 0.9, 0.9))
    drawn = Scene(seed=0, aspect=1.0, tone="light", pattern="plain", items=(word, star))
    misread = 'A red word "car" and a blue star.'
    assert names_all(misread, drawn, texts=False) and not names_all(misread, drawn, texts=True)
    assert not names_all('A red word "cat" and a green star.', drawn, texts=False)
    assert not names_all('A red word "cat", a blue star and a blue star.', drawn, texts=False)
