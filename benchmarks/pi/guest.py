"""Processes that are asked: on the emulated board, its memory watched from outside, and here."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.pi.ask import Answers, Order, read_file, write_file
from benchmarks.pi.memory import Resident, largest, read_smaps
from benchmarks.pi.root import EMULATOR, python_command
from benchmarks.pi.tools import complaint
from benchmarks.tables import ROOT

_SCRIPT = ("-m", "benchmarks.pi.ask")
_SAMPLE_S = 0.1
_LIMIT_S = 900.0
_NICE = 10


@dataclass(frozen=True, kw_only=True)
class Board:
    """The emulated board: its root, its site-packages, and where bytecode goes, so that these stay as installed."""

    root: Path
    site: Path
    bytecode: Path

    def ask(self, order: Order, folder: Path) -> tuple[Answers, Resident]:
        """Ask in the emulator; files go to `folder`. The memory is the largest that was seen.

        Raises:
            RuntimeError: the process failed; the message has what it said last.
        """
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{self.site}{os.pathsep}{ROOT}",
            "PYTHONSAFEPATH": "1",
            "PYTHONPYCACHEPREFIX": str(self.bytecode),
            "EDGEVLM_HOME": str(folder),
        }
        return _ask(["nice", f"-n{_NICE}", *python_command(self.root)], environment, order, folder)


def ask_here(order: Order, folder: Path) -> Answers:
    """Ask on this machine, in a process of its own; raises as `Board.ask`."""
    return _ask([sys.executable], {**os.environ, "EDGEVLM_HOME": str(folder)}, order, folder)[0]


def _ask(python: Sequence[str], environment: Mapping[str, str], order: Order, folder: Path) -> tuple[Answers, Resident]:
    folder.mkdir(parents=True, exist_ok=True)
    given, found, said = folder / "order.json", folder / "answers.json", folder / "said.txt"
    write_file(given, order)
    found.unlink(missing_ok=True)
    with said.open("wb") as output:
        memory, code = _run([*python, *_SCRIPT, str(given), str(found)], environment, output)
    if code != 0:
        raise RuntimeError(
            f"{order.bundle}: ended with {code}: {complaint(said.read_text(encoding='utf-8', errors='replace'))}"
        )
    return read_file(Answers, found), memory


def _run(command: Sequence[str], environment: Mapping[str, str], output: IO[bytes]) -> tuple[Resident, int]:
    """The largest memory seen, and the exit code; a process that takes too long is killed."""
    memory = Resident(program=0, emulator=0)
    deadline = time.monotonic() + _LIMIT_S
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=output) as process:
        while process.poll() is None:
            memory = largest(memory, _resident(process.pid))
            if time.monotonic() > deadline:
                process.kill()
            time.sleep(_SAMPLE_S)
    return memory, process.returncode


def _resident(pid: int) -> Resident:
    """Of a process that may just have ended."""
    try:
        return read_smaps(Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8", errors="replace"), EMULATOR)
    except OSError:
        return Resident(program=0, emulator=0)
