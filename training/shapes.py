"""Outlines of the shapes as polygons around the origin."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

Point = tuple[float, float]
Outline = tuple[Point, ...]


def _circle() -> Outline:
    return tuple((math.cos(t * math.tau / 60), math.sin(t * math.tau / 60)) for t in range(60))


def _square() -> Outline:
    return ((-1, -1), (1, -1), (1, 1), (-1, 1))


def _triangle() -> Outline:
    return ((0, -1), (1, 0.75), (-1, 0.75))


def _star() -> Outline:
    radii = (1.0, 0.42)
    return tuple(
        (radii[k % 2] * math.sin(k * math.tau / 10), -radii[k % 2] * math.cos(k * math.tau / 10)) for k in range(10)
    )


def _cross() -> Outline:
    a, b = 0.34, 1.0
    return (
        (-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
        (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a),
    )  # fmt: skip


def _heart() -> Outline:
    turns = [t * math.tau / 60 for t in range(60)]
    return tuple(
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    )


_OUTLINES: dict[str, Callable[[], Outline]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "heart": _heart,
}


@lru_cache(maxsize=64)
def outline(name: str) -> Outline:
    """The upright polygon of a shape."""
    return _OUTLINES[name]()


def rotated(name: str, angle: float) -> Outline:
    """The polygon turned by `angle` degrees."""
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return tuple((x * cos - y * sin, x * sin + y * cos) for x, y in outline(name))


def bounds(points: Outline) -> tuple[float, float, float, float]:
    """Smallest box (x0, y0, x1, y1) around points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return min(xs), min(ys), max(xs), max(ys)


def extent(name: str, angle: float) -> tuple[float, float]:
    """Width and height of the turned shape, the longer one being 1."""
    x0, y0, x1, y1 = bounds(rotated(name, angle))
    longer = max(x1 - x0, y1 - y0)
    return (x1 - x0) / longer, (y1 - y0) / longer


def fitted(name: str, angle: float, box: tuple[float, float, float, float]) -> list[Point]:
    """The turned polygon moved and scaled into a box in pixels."""
    points = rotated(name, angle)
    x0, y0, x1, y1 = bounds(points)
    scale_x, scale_y = (box[2] - box[0]) / (x1 - x0), (box[3] - box[1]) / (y1 - y0)
    return [(box[0] + (x - x0) * scale_x, box[1] + (y - y0) * scale_y) for x, y in points]
