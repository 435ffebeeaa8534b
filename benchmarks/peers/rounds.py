"""Who is asked when: all in turns, and those whose figures are too far apart a few times more."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from benchmarks.peers.contestants import Contestant
from benchmarks.peers.figures import is_noisy
from benchmarks.peers.workload import Run, Workload

Ask: TypeAlias = Callable[[Contestant, Workload], Run]
# Depths, memory for one image and restarts vary little or decide nothing: a few rounds are enough for them.
_FULL_ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How often each is asked, slow peers at most `slow` times, and how often more where a figure is noisy."""

    repeats: int = 5
    slow: int = 3
    more: int = 4


@dataclass(kw_only=True)
class Asked:
    """Runs of each peer by name, and why others have none, as a line each."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def alternate(contestants: Sequence[Contestant], ask: Ask, workload: Workload, rounds: Rounds) -> Asked:
    """Runs of each, in turns that begin with another one each time; who fails takes no further part."""
    asked = Asked(runs={contestant.name: [] for contestant in contestants})
    for index in range(rounds.repeats):
        here = [contestant for contestant in contestants if not contestant.slow or index < rounds.slow]
        _ask_round(here, ask, replace(workload, seed=index, full=index < _FULL_ROUNDS), asked)
    for index in range(rounds.repeats, rounds.repeats + rounds.more):
        noisy = [contestant for contestant in contestants if is_noisy(asked.runs.get(contestant.name, []))]
        if noisy:
            print(f"once more, too far apart: {', '.join(each.name for each in noisy)}", file=sys.stderr)
        _ask_round(noisy, ask, replace(workload, seed=index, full=False), asked)
    return asked


def _ask_round(contestants: Sequence[Contestant], ask: Ask, workload: Workload, asked: Asked) -> None:
    for contestant in _turned(contestants, workload.seed):
        if contestant.name in asked.failed:
            continue
        try:
            asked.runs[contestant.name].append(ask(contestant, workload))
        except RuntimeError as error:
            asked.failed[contestant.name] = f"{contestant.name}: {error}"
            del asked.runs[contestant.name]


def _turned(contestants: Sequence[Contestant], index: int) -> Iterator[Contestant]:
    turn = index % max(1, len(contestants))
    yield from contestants[turn:]
    yield from contestants[:turn]
