"""What goes on while one waits: bars on a terminal; of an export's steps lines with --verbose; nothing otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgevlm.cli.output import note

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Steps:
    """What an export tells its progress to; draws on `bars` where there are any."""

    def __init__(self, bars: Progress | None, *, spoken: bool) -> None:
        self._bars = bars
        self._spoken = spoken
        self._task: TaskID | None = None
        self._n_steps = 0

    def start(self, step: str, total: int | None = None) -> None:
        """A step begins; total is how often it will advance, None where that is not known."""
        self._n_steps += 1
        if self._spoken:
            note(f"edgevlm: {step}")
        if self._bars is None:
            return
        self.finish()
        if self._n_steps == 2:
            # Not before: the first step may download, and the hub's client draws bars of its own.
            self._bars.start()
        self._task = self._bars.add_task(step, total=total)

    def advance(self) -> None:
        """One more part of the step is done."""
        if self._bars is not None and self._task is not None:
            self._bars.advance(self._task)

    def finish(self) -> None:
        """Show the step that was going on as done."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, total=1, completed=1)


@contextmanager
def watch(*, verbose: bool) -> Iterator[Steps]:
    """Somewhere to report steps to, until the block ends."""
    if not sys.stderr.isatty():
        yield Steps(None, spoken=verbose)
        return
    bars = _bars()
    steps = Steps(bars, spoken=False)
    try:
        yield steps
        steps.finish()
    finally:
        bars.stop()


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Something to call after each of `total` images; what it drew is gone when the block ends."""
    if total < 2 or not sys.stderr.isatty():
        yield _nothing
        return
    with _bars(transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda: bars.advance(task)


@contextmanager
def following(what: str) -> Iterator[Callable[[int, int], None]]:
    """Something to call with the index and the number of frames before each; its bar is gone when the block ends."""
    if not sys.stderr.isatty():
        yield lambda index, total: None
        return
    with _bars(transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda index, total: bars.update(task, completed=index, total=total)


def _nothing() -> None:
    """Progress that nobody watches."""


def _bars(*, transient: bool = False) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=transient)
