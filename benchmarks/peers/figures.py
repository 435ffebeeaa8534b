"""Medians of repeated runs, how far the runs are apart, and when that is too far to publish."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.peers.workload import Run
from benchmarks.race import spread_of

MAX_SPREAD = 0.15
MIN_RUNS = 3
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
    "one_image_rss",
    "position_bytes",
)
FIRM = ("vision_ms", "first_token_ms", "second_question_ms", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A median, and the middle half's width as a share of it."""

    median: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class PeerFigures:
    """Figures of one peer by name, without those that it does not have, and its tokens per second by depth."""

    by_name: Mapping[str, Figure]
    speed_by_depth: Mapping[int, Figure]

    def __getitem__(self, name: str) -> Figure:
        return self.by_name[name]

    def get(self, name: str) -> Figure | None:
        """A figure that not every peer has."""
        return self.by_name.get(name)


def figure(values: Sequence[float]) -> Figure:
    """Median and spread of a few values; one alone has no spread."""
    return Figure(median=statistics.median(values), spread=spread_of(values))


def peer_figures(runs: Sequence[Run]) -> PeerFigures:
    """What a peer's runs come to."""
    by_name = {name: [value for run in runs if (value := getattr(run, name)) is not None] for name in NAMES}
    depths = sorted({depth for run in runs for depth in run.depth_tokens_per_second})
    by_depth = {
        depth: [run.depth_tokens_per_second[depth] for run in runs if depth in run.depth_tokens_per_second]
        for depth in depths
    }
    return PeerFigures(
        by_name={name: figure(values) for name, values in by_name.items() if values},
        speed_by_depth={depth: figure(values) for depth, values in by_depth.items()},
    )


def noise(figures: Mapping[str, PeerFigures], limit: float = MAX_SPREAD) -> list[str]:
    """The firm figures whose runs are too far apart, each as a line."""
    return [
        f"{peer}: {name} varies by {found[name].spread:.0%}"
        for peer, found in figures.items()
        for name in FIRM
        if found[name].spread > limit
    ]


def too_few(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Whose spread says nothing, each as a line."""
    return [
        f"{peer}: {len(done)} runs where {MIN_RUNS} are needed" for peer, done in runs.items() if len(done) < MIN_RUNS
    ]


def is_noisy(runs: Sequence[Run]) -> bool:
    """Whether a peer's firm figures are too far apart to publish."""
    return bool(runs) and bool(noise({"": peer_figures(runs)}))
