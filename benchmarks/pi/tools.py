"""Programs that are run on the way, and one line about what went wrong with one."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def run_tool(command: Sequence[str | Path]) -> None:
    """Run a program to its end.

    Raises:
        RuntimeError: it is not there or failed; the message has its name and what it said last.
    """
    require(str(command[0]))
    done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
    if done.returncode != 0:
        name = " ".join(map(str, command[:4]))
        raise RuntimeError(f"{name} ... failed: {complaint(done.stdout + done.stderr)}")


def require(*programs: str) -> None:
    """Raise RuntimeError with a line that names those which are not on PATH, and how to get them."""
    absent = [program for program in programs if shutil.which(program) is None]
    if absent:
        raise RuntimeError(
            f"missing: {', '.join(absent)}; on Debian or Ubuntu: apt install qemu-user-static debootstrap"
        )


def complaint(said: str) -> str:
    """The line of an output that says what was wrong: the last one that begins as an error does, or the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    complaints = [line for line in lines if line.lower().startswith(("error", "e:"))]
    return (complaints or lines or ["no output"])[-1]
