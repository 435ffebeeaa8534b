"""A bar chart as SVG: groups of horizontal bars on one scale, readable in a light and in a dark page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_COLORS = ("#8c8c8c", "#c2a878", "#4c8dd6", "#1f5fa8", "#58b368", "#2a7d3c")
_BAR, _GAP, _LABEL, _WIDTH, _VALUE = 12, 10, 150, 760, 60


def draw_bars(path: Path, title: str, groups: Mapping[str, Mapping[str, float]], series: Sequence[str]) -> None:
    """Write a chart of `groups`, each with a value for every name in `series`; bars are labeled with their values."""
    largest = max(value for values in groups.values() for value in values.values())
    scale = (_WIDTH - _LABEL - _VALUE) / largest
    lines = [_text(_LABEL, 18, title, weight="bold"), *_legend(series)]
    y = 60
    for name, values in groups.items():
        lines.append(_text(_LABEL - 8, y + _BAR * len(series) / 2 + 4, name, anchor="end"))
        for index, key in enumerate(series):
            width = max(1.0, values[key] * scale)
            lines.append(_bar(_LABEL, y, width, _COLORS[index % len(_COLORS)]))
            lines.append(_text(_LABEL + width + 4, y + _BAR - 2, f"{values[key]:.3g}", size=10))
            y += _BAR
        y += _GAP
    background = f'<rect width="{_WIDTH}" height="{y}" fill="white"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{y}" font-family="sans-serif">'
    path.write_text("\n".join([head, background, *lines, "</svg>", ""]), encoding="utf-8")


def _legend(series: Sequence[str]) -> list[str]:
    step = (_WIDTH - _GAP) / len(series)
    lines = []
    for index, name in enumerate(series):
        x = _GAP + index * step
        lines += [_bar(x, 32, _BAR, _COLORS[index % len(_COLORS)]), _text(x + _BAR + 4, 42, name, size=10)]
    return lines


def _bar(x: float, y: float, width: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR - 2}" fill="{color}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
