"""What can be asked about a scene, by topic, each with its one right answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random

from training.phrases import background, caption, fits, noun, phrase, place, plural, with_article
from training.scenes import Item, Scene
from training.vocabulary import COLORS, SHAPES

NOUNS = (*SHAPES, "word", "number", "handwritten digit")
_READ_ALL = ("what does it say?", "what does it read?", "what is written?")

Pairs = Iterator[tuple[str, str]]


def _unique(items: Sequence[Item], key: Callable[[Item], str]) -> list[Item]:
    counts = Counter(key(item) for item in items)
    return [item for item in items if counts[key(item)] == 1]


def _colored(item: Item) -> str:
    return f"{item.color} {noun(item)}"


def _references(scene: Scene) -> list[tuple[str, Item]]:
    """Ways to mean exactly one item: by noun, or by color and noun."""
    by_noun = [(noun(item), item) for item in _unique(scene.items, noun)]
    return by_noun + [(_colored(item), item) for item in _unique(scene.items, _colored)]


def _color(scene: Scene, rng: Random) -> Pairs:
    for item in _unique(scene.items, noun):
        asked = ("what color is the {}?", "which color is the {}?", "what is the color of the {}?", "color of the {}?")
        yield rng.choice(asked).format(noun(item)), item.color.capitalize()


def _shape(scene: Scene, rng: Random) -> Pairs:
    for item in _unique(scene.items, lambda item: item.color):
        if item.kind == "shape":
            asked = ("what shape is the {} object?", "what is the shape of the {} object?", "which shape is {}?")
            yield rng.choice(asked).format(item.color), item.name.capitalize()


def _count(scene: Scene, rng: Random) -> Pairs:
    present = [noun(item) for item in scene.items]
    color, name = rng.choice(list(COLORS)), rng.choice(NOUNS)
    subjects = ["object", name, *present, f"{color} object", *(_colored(item) for item in scene.items)]
    subjects += [f"{item.color} object" for item in scene.items]
    asked = ("how many {} are there?", "how many {} do you see?", "how many {} are in the picture?", "count the {}.")
    for subject in subjects:
        total = sum(fits(item, subject) for item in scene.items)
        yield rng.choice(asked).format(plural(subject)), str(total)


def _count_all(scene: Scene, rng: Random) -> Pairs:
    asked = (
        "how many objects are there?",
        "how many objects are in the picture?",
        "count the objects.",
        "how many things are there?",
    )
    yield rng.choice(asked), str(len(scene.items))


def _where(scene: Scene, rng: Random) -> Pairs:
    for reference, item in _references(scene):
        asked = ("where is the {}?", "where do you see the {}?", "in which part of the picture is the {}?")
        yield rng.choice(asked).format(reference), place(item).capitalize()


def _exists(scene: Scene, rng: Random) -> Pairs:
    asked = ("is there {}?", "do you see {}?", "can you see {}?", "is there {} in the picture?")
    there = [noun(item) for item in scene.items] + [_colored(item) for item in scene.items]
    colors = [item.color for item in scene.items] or list(COLORS)
    mixed = [f"{rng.choice(colors)} {rng.choice(SHAPES)}" for _ in range(3)]
    tried = [*mixed, rng.choice(NOUNS), f"{rng.choice(list(COLORS))} {rng.choice(NOUNS)}"]
    tried += [f"{rng.choice(list(COLORS))} {noun(item)}" for item in scene.items]
    missing = [name for name in tried if not any(fits(item, name) for item in scene.items)]
    pool = there if there and (rng.random() < 0.5 or not missing) else missing
    for name in pool:
        yield rng.choice(asked).format(with_article(name)), "Yes" if pool is there else "No"


def _compare(scene: Scene, rng: Random) -> Pairs:
    shapes = [item for item in _unique(scene.items, _colored) if item.size]
    for first in shapes:
        for second in shapes:
            if first.size == second.size:
                continue
            wanted, word = rng.choice((("large", "bigger"), ("large", "larger"), ("small", "smaller")))
            answer = first if first.size == wanted else second
            yield f"which is {word}, the {phrase(first)} or the {phrase(second)}?", f"The {phrase(answer)}"


def _size(scene: Scene, rng: Random) -> Pairs:
    for reference, item in _references(scene):
        if item.size:
            asked = ("how big is the {}?", "what size is the {}?", "is the {} large or small?")
            yield rng.choice(asked).format(reference), item.size.capitalize()


def _read_word(scene: Scene, rng: Random) -> Pairs:
    words = [item for item in scene.items if item.kind == "word"]
    if len(words) == 1:
        asked = ["what is the word?", "what word is written?", "read the word.", "what does the word say?"]
        if sum(item.kind != "shape" for item in scene.items) == 1:
            asked += [*_READ_ALL, "read the text.", "what does the text say?"]
        yield rng.choice(asked), words[0].name


def _read_number(scene: Scene, rng: Random) -> Pairs:
    yield from _digits(scene, rng, "number", ("what number is printed?", "read the number.", "what is the number?"))


def _read_handwritten(scene: Scene, rng: Random) -> Pairs:
    asked = (
        "what digit is written by hand?",
        "which digit is handwritten?",
        "read the handwritten digit.",
        "what digit is it?",
    )
    yield from _digits(scene, rng, "handwritten", asked)


def _digits(scene: Scene, rng: Random, kind: str, asked: Sequence[str]) -> Pairs:
    found = [item for item in scene.items if item.kind == kind]
    if len(found) == 1:
        asked = list(asked)
        if sum(item.kind in ("number", "handwritten") for item in scene.items) == 1:
            asked += ["what number is written?", "what number is it?", "which number do you see?"]
        if sum(item.kind != "shape" for item in scene.items) == 1:
            asked += _READ_ALL
        yield rng.choice(asked), found[0].name


def _background(scene: Scene, rng: Random) -> Pairs:
    asked = (
        "what is the background?",
        "what is the background like?",
        "describe the background.",
        "how does the background look?",
    )
    yield rng.choice(asked), background(scene).capitalize()


def _edge(scene: Scene, rng: Random) -> Pairs:
    if scene.items:
        side, item = rng.choice((("left", scene.items[0]), ("right", scene.items[-1])))
        asked = ("what is on the far {}?", "what is the {}most object?", "which object is furthest to the {}?")
        yield rng.choice(asked).format(side), with_article(phrase(item)).capitalize()


def _describe(scene: Scene, rng: Random) -> Pairs:
    asked = (
        "describe", "describe this.", "describe the image.", "describe this image.", "describe the picture.",
        "describe this picture.", "what is in the picture?", "what is in this image?", "what's in the image?",
        "what do you see?", "what can you see?", "what does the picture show?", "caption this image.",
    )  # fmt: skip
    yield rng.choice(asked), caption(scene, "normal")


TOPICS: dict[str, Callable[[Scene, Random], Pairs]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "count all": _count_all,
    "where": _where,
    "exists": _exists,
    "compare": _compare,
    "size": _size,
    "read word": _read_word,
    "read number": _read_number,
    "read handwritten": _read_handwritten,
    "background": _background,
    "edge": _edge,
    "describe": _describe,
}
