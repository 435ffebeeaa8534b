"""What EdgeVLM aims at, each figure against llama.cpp's best or a time, and how a pair of bundle and engine does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.peers.contestants import LLAMA, OURS
from benchmarks.peers.figures import PeerFigures
from benchmarks.tables import duration

_SECOND_S, _SECOND_SHARE = 0.3, 0.05
_MEMORY = 0.6


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A figure in words, whether it is enough, and its rank: the smaller, the better."""

    text: str
    reached: bool
    rank: float


Judge: TypeAlias = Callable[[str, PeerFigures], Judged | None]
"""A pair's name and figures to how it does; None where it or llama.cpp has no such figure."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure shall be."""

    what: str
    wanted: str
    judge: Judge


def goals(theirs: Mapping[str, PeerFigures]) -> Sequence[Goal]:
    """All of them, given llama.cpp's figures."""
    return (
        _ratio("time to first token, new image", "first_token_ms", 0.30, theirs),
        Goal(
            what="second question about an image",
            wanted=f"at most {_SECOND_S} s and {_SECOND_SHARE} of the first",
            judge=_second_question,
        ),
        _seconds("the same after a restart", "restart_ms", 0.8),
        _speed(1.5, theirs),
        _memory("peak RSS with one image, int4", "as it is fastest", "peak_rss", theirs),
        _memory("the same", "with the least memory", "one_image_rss", theirs),
        _ratio("vision encoder per crop", "vision_ms", 0.15, theirs),
        _seconds("load to ready", "load_ms", 1.0),
    )


def best_of(goal: Goal, mine: Mapping[str, PeerFigures]) -> str | None:
    """Who does best."""
    judged = {name: goal.judge(name, found) for name, found in mine.items()}
    known = {name: each.rank for name, each in judged.items() if each is not None}
    return min(known, key=lambda name: known[name], default=None)


def _ratio(what: str, figure: str, limit: float, theirs: Mapping[str, PeerFigures]) -> Goal:
    def judge(name: str, found: PeerFigures) -> Judged | None:
        if not theirs:
            return None
        ratio = found[figure].median / min(peer[figure].median for peer in theirs.values())
        return Judged(text=f"{ratio:.2f}", reached=ratio <= limit, rank=ratio)

    return Goal(what=what, wanted=f"at most {limit:.2f} of llama.cpp's best", judge=judge)


def _seconds(what: str, figure: str, limit: float) -> Goal:
    def judge(name: str, found: PeerFigures) -> Judged | None:
        known = found.get(figure)
        if known is None:
            return None
        return Judged(text=duration(known.median), reached=known.median <= 1e3 * limit, rank=known.median)

    return Goal(what=what, wanted=f"at most {limit:g} s", judge=judge)


def _second_question(name: str, found: PeerFigures) -> Judged:
    again = found["second_question_ms"].median
    share = again / found["first_token_ms"].median
    reached = again <= 1e3 * _SECOND_S and share <= _SECOND_SHARE
    return Judged(text=f"{duration(again)}, {share:.3f}", reached=reached, rank=again)


def _speed(limit: float, theirs: Mapping[str, PeerFigures]) -> Goal:
    def judge(name: str, found: PeerFigures) -> Judged | None:
        if not theirs:
            return None
        ratio = found["tokens_per_second"].median / max(peer["tokens_per_second"].median for peer in theirs.values())
        return Judged(text=f"{ratio:.2f}", reached=ratio >= limit, rank=-ratio)

    return Goal(what="decode, tokens/s", wanted=f"at least {limit} of llama.cpp's best", judge=judge)


def _memory(what: str, how: str, figure: str, theirs: Mapping[str, PeerFigures]) -> Goal:
    """A process of ours with one image against llama.cpp's Q4_0."""
    their = theirs.get(f"{LLAMA} Q4_0")
    rss = None if their is None else their.get(figure)

    def judge(name: str, found: PeerFigures) -> Judged | None:
        mine = found.get("one_image_rss")
        if rss is None or mine is None or not name.startswith(f"{OURS} int4"):
            return None
        ratio = mine.median / rss.median
        return Judged(text=f"{ratio:.2f}", reached=ratio <= _MEMORY, rank=ratio)

    return Goal(what=what, wanted=f"at most {_MEMORY:.2f} of llama.cpp's Q4_0 {how}", judge=judge)
