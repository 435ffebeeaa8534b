"""Two drawings as SVG: the first token's time by phase, and tokens per second against depth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from xml.sax.saxutils import escape

from benchmarks.peers.contestants import EAGER, LLAMA, OURS
from benchmarks.peers.figures import PeerFigures

Place: TypeAlias = Callable[[float, float], tuple[float, float]]

_PHASES = {
    "vision": ("vision_ms", "#4269d0"),
    "image prefix": ("prefix_ms", "#efb118"),
    "question": ("question_ms", "#ff725c"),
}
# Shades and dashes of one color for each kind of peer.
_COLORS = {
    OURS: ("#0b6e4f", "#1d9bd1", "#54b435", "#214e9c"),
    LLAMA: ("#c1440e", "#f08a24", "#7d2a0c"),
    EAGER: ("#5b6470", "#a0a7b1"),
}
_DASHES = ("none", "7 4", "2 3", "9 3 2 3")
_WIDTH, _LEFT, _TOP, _BAR, _GAP = 860, 240, 72, 22, 10
_PLOT_HEIGHT, _BOTTOM, _LABELS, _LINE = 320, 56, 265, 16


def draw_first_token(path: Path, title: str, figures: Mapping[str, PeerFigures]) -> None:
    """A bar for each peer, seconds, divided into phases."""
    height = _TOP + len(figures) * (_BAR + _GAP) + 14
    longest = max(found["first_token_ms"].median for found in figures.values())
    scale = (_WIDTH - _LEFT - 80) / longest
    parts = [_text(20, 26, f"Time to first token about a new image, {title}", size=15)]
    for i, (phase, (_, color)) in enumerate(_PHASES.items()):
        parts += [_box(_LEFT + 140 * i, 44, 12, 12, color), _text(_LEFT + 18 + 140 * i, 55, phase)]
    for row, (name, found) in enumerate(figures.items()):
        parts += _bar(name, found, _TOP + row * (_BAR + _GAP), scale)
    _write(path, height, parts)


def draw_speed(path: Path, title: str, figures: Mapping[str, PeerFigures]) -> None:
    """A line for each peer: tokens per second over the positions before the first token."""
    known = {name: found for name, found in figures.items() if found.speed_by_depth}
    deepest = max(depth for found in known.values() for depth in found.speed_by_depth)
    fastest = max(speed.median for found in known.values() for speed in found.speed_by_depth.values())
    step = _round_step(fastest / 5)
    top = step * math.ceil(fastest / step)
    right = _WIDTH - _LABELS

    def place(depth: float, speed: float) -> tuple[float, float]:
        return 60 + depth / deepest * (right - 60), _TOP + (1 - speed / top) * _PLOT_HEIGHT

    parts = [
        _text(20, 26, f"Greedy tokens per second against depth, {title}", size=15),
        *_axes(place, deepest, top, step),
    ]
    ends = []
    for name, (color, dash) in zip(known, _line_styles(list(known)), strict=True):
        points = [place(depth, speed.median) for depth, speed in sorted(known[name].speed_by_depth.items())]
        parts += _line(points, color, dash)
        ends.append((points[-1], name, color))
    _write(path, _TOP + _PLOT_HEIGHT + _BOTTOM, [*parts, *_end_labels(ends, right)])


def _line(points: Sequence[tuple[float, float]], color: str, dash: str) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    style = f'fill="none" stroke="{color}" stroke-width="2.2" stroke-dasharray="{dash}"'
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{color}"/>' for x, y in points]
    return [f'<polyline points="{path}" {style}/>', *dots]


def _end_labels(ends: Sequence[tuple[tuple[float, float], str, str]], right: float) -> list[str]:
    """A name for each line right of the plot, with a thin line to where it ends."""
    parts = []
    for y, (end_x, end_y), name, color in _apart(ends):
        parts.append(
            f'<line x1="{end_x + 5:.1f}" y1="{end_y:.1f}" x2="{right + 18:.1f}" y2="{y:.1f}" stroke="{color}" '
            'stroke-width="0.7" stroke-dasharray="1 2"/>'
        )
        parts.append(_text(right + 22, y + 4, name, color=color))
    return parts


def _bar(name: str, found: PeerFigures, y: float, scale: float) -> list[str]:
    parts = [_text(_LEFT - 8, y + 16, name, anchor="end")]
    x = float(_LEFT)
    for figure, color in _PHASES.values():
        width = max(0.0, found[figure].median * scale)
        parts.append(_box(x, y, width, _BAR, color))
        x += width
    return [*parts, _text(x + 6, y + 16, f"{found['first_token_ms'].median / 1e3:.2f} s")]


def _axes(place: Place, deepest: int, top: float, step: float) -> list[str]:
    parts = []
    for i in range(round(top / step) + 1):
        (x, y), (end, _) = place(0, i * step), place(deepest, 0)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}" stroke="#d8dbe0"/>')
        parts.append(_text(x - 8, y + 4, f"{i * step:g}", anchor="end"))
    for depth in range(0, deepest + 1, max(1, int(_round_step(deepest / 5)))):
        x, y = place(depth, 0)
        parts.append(_text(x, y + 18, str(depth), anchor="middle"))
    (left, y), (x, _) = place(0, top), place(deepest / 2, 0)
    parts.append(_text(left - 8, y - 12, "tokens/s", anchor="middle"))
    return [*parts, _text(x, _TOP + _PLOT_HEIGHT + 40, "positions before the first new token", anchor="middle")]


def _apart(
    ends: Sequence[tuple[tuple[float, float], str, str]],
) -> list[tuple[float, tuple[float, float], str, str]]:
    """A height for each line's name, by that of its end: not over another, and not below the plot."""
    ordered = sorted(ends, key=lambda end: end[0][1])
    heights: list[float] = []
    for (_, y), _, _ in ordered:
        heights.append(max(y, heights[-1] + _LINE) if heights else y)
    lowest = float(_TOP + _PLOT_HEIGHT)
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], lowest)
        lowest = heights[i] - _LINE
    return [(height, *end) for height, end in zip(heights, ordered, strict=True)]


def _line_styles(names: Sequence[str]) -> list[tuple[str, str]]:
    """Color and dashes."""
    seen: dict[str, int] = {}
    styles = []
    for name in names:
        kind = name.partition(" ")[0]
        index = seen.get(kind, 0)
        styles.append((_COLORS[kind][index % len(_COLORS[kind])], _DASHES[index % len(_DASHES)]))
        seen[kind] = index + 1
    return styles


def _round_step(value: float) -> float:
    """The next larger of 1, 2 and 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, color: str = "#24292f") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}"'
    return f"<text {place}>{escape(text)}</text>"


def _box(x: float, y: float, width: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{color}"/>'


def _write(path: Path, height: int, parts: Sequence[str]) -> None:
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
    lines = [opening, f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>', *parts, "</svg>"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
