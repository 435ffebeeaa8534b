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
_COLORS = {
    OURS: ("#1b7f5c", "#35b488", "#0d4f38", "#7fd3b4"),
    LLAMA: ("#c8501e", "#e88a52", "#8f3210"),
    EAGER: ("#6b7280", "#a3a9b4"),
}
_WIDTH, _LEFT, _TOP, _BAR, _GAP = 760, 190, 62, 22, 10
_PLOT_HEIGHT, _BOTTOM = 300, 50


def draw_first_token(path: Path, figures: Mapping[str, PeerFigures]) -> None:
    """A bar for each peer, seconds, divided into phases."""
    height = _TOP + len(figures) * (_BAR + _GAP) + 20
    longest = max(found["first_token_ms"].median for found in figures.values())
    scale = (_WIDTH - _LEFT - 80) / longest
    parts = [_text(20, 24, "Time to first token about a new image", size=15)]
    for i, (phase, (_, color)) in enumerate(_PHASES.items()):
        parts += [_box(_LEFT + 130 * i, 36, 12, 12, color), _text(_LEFT + 18 + 130 * i, 47, phase)]
    for row, (name, found) in enumerate(figures.items()):
        parts += _bar(name, found, _TOP + row * (_BAR + _GAP), scale)
    _write(path, height, parts)


def draw_speed(path: Path, figures: Mapping[str, PeerFigures]) -> None:
    """A line for each peer: tokens per second over the positions before the first token."""
    deepest = max(depth for found in figures.values() for depth in found.speed_by_depth)
    fastest = max(speed.median for found in figures.values() for speed in found.speed_by_depth.values())
    step = _round_step(fastest / 5)
    top = step * math.ceil(fastest / step)
    right = _WIDTH - 200

    def place(depth: float, speed: float) -> tuple[float, float]:
        return 60 + depth / deepest * (right - 60), _TOP + (1 - speed / top) * _PLOT_HEIGHT

    parts = [_text(20, 24, "Greedy tokens per second against depth", size=15)]
    parts += _axes(place, deepest, top, step)
    ends = []
    for name, color in zip(figures, _line_colors(list(figures)), strict=True):
        points = [place(depth, speed.median) for depth, speed in sorted(figures[name].speed_by_depth.items())]
        path_data = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path_data}" fill="none" stroke="{color}" stroke-width="2"/>')
        ends.append((points[-1][1], name, color))
    for y, name, color in _apart(ends):
        parts.append(_text(right + 10, y + 4, name, color=color))
    _write(path, _TOP + _PLOT_HEIGHT + _BOTTOM, parts)


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
    x, y = place(deepest / 2, 0)
    return [*parts, _text(x, y + 38, "positions before the first new token", anchor="middle")]


def _apart(ends: Sequence[tuple[float, str, str]]) -> list[tuple[float, str, str]]:
    """The labels at the lines' ends, moved down where they would cover each other."""
    placed: list[tuple[float, str, str]] = []
    for y, name, color in sorted(ends):
        above = placed[-1][0] if placed else -math.inf
        placed.append((max(y, above + 15), name, color))
    return placed


def _line_colors(names: Sequence[str]) -> list[str]:
    """Shades of one color for each kind of peer."""
    seen: dict[str, int] = {}
    colors = []
    for name in names:
        kind = name.partition(" ")[0]
        shades = _COLORS[kind]
        colors.append(shades[seen.get(kind, 0) % len(shades)])
        seen[kind] = seen.get(kind, 0) + 1
    return colors


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
