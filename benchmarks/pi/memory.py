"""Resident memory of an emulated process, parted into what the program has mapped and what the emulator needs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# qemu gives programs addresses from 0x5500000000 on, and the program itself below; its own are where Linux puts those
# of any 64-bit program, far above.
PROGRAM_END = 1 << 40
_MAPPING = re.compile(r"^([0-9a-f]+)-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")


@dataclass(frozen=True, kw_only=True)
class Resident:
    """Bytes in memory: mapped by the emulated program, and the emulator's own (translated code above all)."""

    program: int
    emulator: int


def read_smaps(text: str, emulator: str) -> Resident:
    """What /proc/PID/smaps of an emulated process says; `emulator` is the name of qemu's file.

    Raises:
        ValueError: the emulator's file lies among the program's addresses, so that the two can not be told apart.
    """
    program = other = 0
    for start, path, n_bytes in _mappings(text):
        if start >= PROGRAM_END:
            other += n_bytes
        elif path.endswith(emulator):
            raise ValueError(f"{path} is mapped at {start:#x}, where the emulated program's memory was expected")
        else:
            program += n_bytes
    return Resident(program=program, emulator=other)


def largest(a: Resident, b: Resident) -> Resident:
    """The larger of each part."""
    return Resident(program=max(a.program, b.program), emulator=max(a.emulator, b.emulator))


def _mappings(text: str) -> Iterator[tuple[int, str, int]]:
    """Start, path and resident bytes of each mapping."""
    start, path = 0, ""
    for line in text.splitlines():
        if line.startswith("Rss:"):
            yield start, path, 1024 * int(line.split()[1])
        elif found := _MAPPING.match(line):
            start, path = int(found[1], 16), found[2]
