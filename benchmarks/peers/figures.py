"""Medians of repeated runs, how far the runs are apart, and when that is too far to publish."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.workload import Run
from benchmarks.race import spread_of

MAX_SPREAD = 0.15
# A peer's figures by the name of Run's field or property. Those of FIRM decide whether the machine was quiet enough.
NAMES = (
    "load_ms",
    "first_image_ms",
    "vision_ms",
    "prefix_ms",
    "question_ms",
    "first_token_ms",
    "second_question_ms",
    "restart_ms",
    "tokens_per_second",
    "peak_rss",
)
FIRM = ("vision_ms", "first_token_ms", "second_question_ms", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A median, and the middle half's width as a share of it."""

    median: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class PeerFigures:
    """Figures of one peer by name, and its tokens per second by depth."""

    by_name: Mapping[str, Figure]
    speed_by_depth: Mapping[int, Figure]

    def __getitem__(self, name: str) -> Figure:
        return self.by_name[name]


def figure(values: Sequence[float]) -> Figure:
    """Median and spread of a few values; one alone has no spread."""
    return Figure(median=statistics.median(values), spread=spread_of(values))


def peer_figures(runs: Sequence[Run]) -> PeerFigures:
    """What a peer's runs come to."""
    return PeerFigures(
        by_name={name: figure([getattr(run, name) for run in runs]) for name in NAMES},
        speed_by_depth={
            depth: figure([run.depth_tokens_per_second[depth] for run in runs])
            for depth in runs[0].depth_tokens_per_second
        },
    )


def noise(figures: Mapping[str, PeerFigures], limit: float = MAX_SPREAD) -> list[str]:
    """The firm figures whose runs are too far apart, each as a line."""
    return [
        f"{peer}: {name} varies by {found[name].spread:.0%}"
        for peer, found in figures.items()
        for name in FIRM
        if found[name].spread > limit
    ]
