"""Run a function in a fresh process and learn what it took: seconds and peak memory, nobody else's included."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Measured(Generic[T]):
    """What a function returned, its seconds without the start of the process, and the process's peak RSS in bytes."""

    value: T
    seconds: float
    peak_rss: int


def measure(function: Callable[..., T], *arguments: object) -> Measured[T]:
    """Call `function`, a module's own, with arguments that can be pickled, in a process of its own.

    Raises:
        RuntimeError: the process died before the function returned; it has printed why.
    """
    context = multiprocessing.get_context("spawn")  # a forked process would start with this one's memory
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sending, function, arguments))
    process.start()
    sending.close()
    try:
        measured: Measured[T] = receiving.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} did not return; its process printed why") from None
    finally:
        process.join()
    return measured


def peak_rss() -> int:
    """Peak resident memory of this process so far, in bytes (Linux)."""
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def _call(sending: Connection, function: Callable[..., T], arguments: tuple[object, ...]) -> None:
    start = time.perf_counter()
    value = function(*arguments)
    sending.send(Measured(value=value, seconds=time.perf_counter() - start, peak_rss=peak_rss()))
