"""How many threads one graph may use."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

from edgevlm_runtime.errors import InvalidOption

_MAX_THREADS = 1024
VARIABLE = "EDGEVLM_THREADS"


def thread_count(threads: int | None) -> int:
    """`threads`, else EDGEVLM_THREADS, else the physical cores that this process may use.

    Raises:
        InvalidOption: not an integer from 1 to 1024.
    """
    if threads is not None:
        return _checked(threads, "threads")
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return physical_cores()
    return _checked(int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else text, VARIABLE)


def physical_cores() -> int:
    """Physical cores, as far as affinity and container limits let this process use them.

    Two hardware threads of one core share its arithmetic units: a second one makes matrix products slower.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, math.ceil(min(len(cores), _quota())))


def _siblings(cpu: int) -> str:
    """A name shared by the hardware threads of one core; Linux tells them, elsewhere each counts as a core."""
    with suppress(OSError):
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    return str(cpu)


def _quota() -> float:
    """CPUs granted by the container (cgroup v2, else v1); infinite without a limit."""
    with suppress(OSError, ValueError):
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.inf if granted == "max" else int(granted) / int(period)
    with suppress(OSError, ValueError):
        granted_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return granted_us / period_us if granted_us > 0 else math.inf
    return math.inf


def _checked(count: object, name: str) -> int:
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= _MAX_THREADS:
        raise InvalidOption(f"{name} must be an integer from 1 to {_MAX_THREADS}, not {count!r:.40}")
    return count
