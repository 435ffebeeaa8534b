"""Several ways to do the same thing, timed in turns: each in a process of its own, the others waiting meanwhile.

A machine is never equally fast for long. Turns of a second or so let all of them meet the same weather.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from benchmarks.processes import peak_rss


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """`prepare(*arguments)`, a module's own function, gives the call to time; both run in the contestant's process."""

    prepare: Callable[..., Callable[[], object]]
    arguments: tuple[object, ...]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one call: the median of each turn, and peak memory of the process in bytes."""

    turns_ms: tuple[float, ...]
    peak_rss: int

    @property
    def median_ms(self) -> float:
        """The median over turns."""
        return statistics.median(self.turns_ms)

    @property
    def spread(self) -> float:
        """See `spread_of`, of the turns."""
        return spread_of(self.turns_ms)


def spread_of(values: Sequence[float]) -> float:
    """The distance between the quartiles over the median, 0 for a single value."""
    if len(values) < 2:
        return 0.0
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / median if median else 0.0


@dataclass(kw_only=True)
class _Runner:
    """A contestant's process, from its start until it is told to end."""

    process: multiprocessing.process.BaseProcess
    pipe: Connection
    turns_ms: list[float] = field(default_factory=list)

    def ask(self, seconds: float) -> object:
        self.pipe.send(seconds)
        return self.receive()

    def receive(self) -> object:
        try:
            return self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.process.name} died; its process printed why") from None


def race(contestants: Mapping[str, Contestant], *, turns: int, seconds: float) -> dict[str, Timing]:
    """Time all contestants in `turns` turns of about `seconds` each.

    Raises:
        RuntimeError: a process died.
    """
    runners = {name: _start(name, contestant) for name, contestant in contestants.items()}
    try:
        for _ in range(turns):
            for runner in runners.values():
                runner.turns_ms.append(_as_ms(runner.ask(seconds)))
        return {
            name: Timing(turns_ms=tuple(runner.turns_ms), peak_rss=_as_bytes(runner.ask(0.0)))
            for name, runner in runners.items()
        }
    finally:
        for runner in runners.values():
            runner.process.terminate()
            runner.process.join()


def _start(name: str, contestant: Contestant) -> _Runner:
    """Start a process and wait until it is ready: one at a time, so that compiling disturbs nobody."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, contestant.prepare, contestant.arguments), name=name)
    process.start()
    theirs.close()
    runner = _Runner(process=process, pipe=ours)
    runner.receive()
    return runner


def _serve(pipe: Connection, prepare: Callable[..., Callable[[], object]], arguments: Sequence[object]) -> None:
    call = prepare(*arguments)
    call()
    pipe.send(None)
    while True:
        seconds = pipe.recv()
        pipe.send(_median_ms(call, seconds) if seconds else peak_rss())


def _median_ms(call: Callable[[], object], seconds: float) -> float:
    """The median of as many calls as fit, three at least, after one that is not counted."""
    call()
    end = time.perf_counter() + seconds
    durations: list[float] = []
    while len(durations) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return 1e3 * statistics.median(durations)


def _as_ms(value: object) -> float:
    assert isinstance(value, float)
    return value


def _as_bytes(value: object) -> int:
    assert isinstance(value, int)
    return value
