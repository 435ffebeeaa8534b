"""Scenes: objects with known places, colors and texts, laid out at random from a seed, without pixels yet.

A scene is resolution-free: boxes are fractions of the picture, so that one scene can be drawn at any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from training import fonts, handwriting, shapes
from training.vocabulary import COLORS, PATTERNS, SHAPES, TONES, WORDS

MAX_ITEMS = 5
SPLITS = ("train", "val", "test")
_SPLIT_STRIDE = 10_000_000
_CENTER_GAP = 0.05
_THIRD_GAP = 0.02
_PADDING = 0.025
_HIDDEN_ON = {"light": "white", "dark": "black"}


@dataclass(frozen=True, kw_only=True)
class Item:
    """One object. `name` is the shape, the word, the number or the digit; the box is (x0, y0, x1, y1) in fractions."""

    kind: str
    name: str
    color: str
    size: str
    box: tuple[float, float, float, float]
    angle: float = 0.0
    variant: int = 0
    """Font of a printed text, sample of a handwritten digit."""

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Items from left to right on a background; aspect is width / height."""

    seed: int
    aspect: float
    tone: str
    pattern: str
    items: tuple[Item, ...]


def scene(split: str, index: int) -> Scene:
    """The scene number `index` of a split; splits never share a seed."""
    if not 0 <= index < _SPLIT_STRIDE:
        raise ValueError(f"scene index {index} is not in 0..{_SPLIT_STRIDE - 1}")
    return compose(SPLITS.index(split) * _SPLIT_STRIDE + index, split)


def compose(seed: int, split: str) -> Scene:
    """Lay out a scene; handwritten digits come from the split's own samples, test texts from the built-in font."""
    rng = Random(seed)
    aspect = math.exp(rng.uniform(-0.28, 0.28))
    tone, pattern = rng.choice(TONES), rng.choice(PATTERNS)
    wanted = _kinds(rng)
    colors = _palette(rng, [c for c in COLORS if c != _HIDDEN_ON.get(tone)])
    outlines = _palette(rng, list(SHAPES))
    items: list[Item] = []
    for kind in wanted:
        draft = _Draft(kind=kind, colors=colors, shapes=outlines, aspect=aspect, crowd=len(wanted), split=split)
        item = _place(rng, draft, items)
        if item is not None:
            items.append(item)
    ordered = tuple(sorted(items, key=lambda item: item.center[0]))
    return Scene(seed=seed, aspect=aspect, tone=tone, pattern=pattern, items=ordered)


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """What an item may be."""

    kind: str
    colors: Sequence[str]
    shapes: Sequence[str]
    aspect: float
    crowd: int
    split: str


def _kinds(rng: Random) -> list[str]:
    """Mostly shapes; some scenes with one text among shapes, some with texts only. Texts first: they need most room."""
    mix = rng.random()
    texts = 0 if mix < 0.5 else 1 if mix < 0.85 else rng.randint(2, 3)
    shapes = rng.choice((1, 2, 3, 3, 4, 5)) if texts == 0 else rng.randint(0, 3) if texts == 1 else 0
    return [rng.choice(("word", "number", "handwritten")) for _ in range(texts)] + ["shape"] * shapes


def _palette(rng: Random, names: list[str]) -> list[str]:
    """All names, or only two of them, so that equal colors and shapes come together."""
    return rng.sample(names, 2) if rng.random() < 0.4 else names


def _place(rng: Random, draft: _Draft, placed: Sequence[Item]) -> Item | None:
    """An item that keeps clear of the others, or None when there is no room."""
    for attempt in range(120):
        item = _propose(rng, draft, shrink=1.0 - 0.25 * attempt / 120)
        if item is not None and _is_clear(item, placed):
            return item
    return None


def _propose(rng: Random, draft: _Draft, shrink: float) -> Item | None:
    name, variant, angle, size = _identity(rng, draft)
    width, height = _extent(rng, draft, name, variant, angle, size)
    if size == "":
        width, height = width * shrink, height * shrink
    if draft.aspect > 1:
        width /= draft.aspect
    else:
        height *= draft.aspect
    if width > 0.94 or height > 0.94:
        return None
    x0, y0 = rng.uniform(0.02, 0.98 - width), rng.uniform(0.02, 0.98 - height)
    return Item(
        kind=draft.kind,
        name=name,
        color=rng.choice(draft.colors),
        size=size,
        box=(x0, y0, x0 + width, y0 + height),
        angle=angle,
        variant=variant,
    )


def _identity(rng: Random, draft: _Draft) -> tuple[str, int, float, str]:
    """Name, variant, angle and size word. Only shapes have a size word."""
    if draft.kind == "shape":
        large = rng.random() < (0.6 if draft.crowd <= 3 else 0.3)
        return rng.choice(draft.shapes), 0, rng.uniform(-20, 20), "large" if large else "small"
    if draft.kind == "word":
        return rng.choice(WORDS), _font(rng, draft), 0.0, ""
    if draft.kind == "number":
        return str(rng.choice((rng.randrange(10), rng.randrange(100)))), _font(rng, draft), 0.0, ""
    digit = rng.randrange(10)
    return str(digit), handwriting.choose(rng, digit, draft.split), 0.0, ""


def _font(rng: Random, draft: _Draft) -> int:
    return rng.randrange(fonts.count(builtin_only=draft.split == "test"))


def _extent(rng: Random, draft: _Draft, name: str, variant: int, angle: float, size: str) -> tuple[float, float]:
    """Width and height of the item as fractions of the shorter side of the picture."""
    if draft.kind == "shape":
        side = rng.uniform(0.32, 0.46) if size == "large" else rng.uniform(0.17, 0.24)
        width, height = shapes.extent(name, angle)
        return side * width, side * height
    if draft.kind == "handwritten":
        side = rng.uniform(0.26, 0.46)
        return side * handwriting.aspect(variant), side
    ratio = fonts.aspect(name, variant)
    height = rng.uniform(0.13, 0.26) if draft.kind == "word" else rng.uniform(0.2, 0.4)
    width = min(height * ratio, 0.9)
    return width, width / ratio


def _is_clear(item: Item, placed: Sequence[Item]) -> bool:
    x, y = item.center
    if any(abs(c - third) < _THIRD_GAP for c in (x, y) for third in (1 / 3, 2 / 3)):
        return False
    return all(abs(x - other.center[0]) >= _CENTER_GAP and not _overlap(item, other) for other in placed)


def _overlap(a: Item, b: Item) -> bool:
    return (
        a.box[0] < b.box[2] + _PADDING
        and b.box[0] < a.box[2] + _PADDING
        and a.box[1] < b.box[3] + _PADDING
        and b.box[1] < a.box[3] + _PADDING
    )
