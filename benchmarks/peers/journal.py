"""Measurements that are done, one JSON object a line, so that a run which was cut off goes on where it was.

A line counts only for exactly what it is about: versions, source code, machine, files and workload are part of that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.tables import ROOT

# What runs while time is taken; tables and drawings may change.
_SOURCES = ("runtime/edgevlm_runtime", "benchmarks/processes.py", "benchmarks/peers")
_NOT_MEASURING = ("report.py", "goals.py", "plots.py", "figures.py", "publish.py", "setup.py")


class Journal:
    """A file of measurements. `about`, of plain values, goes with each; `resume` keeps what the file has."""

    def __init__(self, path: Path, about: Mapping[str, object], *, resume: bool) -> None:
        self._path = path
        self._about = dict(about)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            path.unlink(missing_ok=True)
        self._known = dict(_lines(path)) if path.exists() else {}

    def find(self, about: Mapping[str, object]) -> dict[str, Any] | None:
        """What was measured about exactly this."""
        return self._known.get(self._key(about))

    def add(self, about: Mapping[str, object], value: dict[str, Any]) -> None:
        """Keep a measurement, on disk when this returns."""
        key = self._key(about)
        value = json.loads(json.dumps(value))
        self._known[key] = value
        with self._path.open("a", encoding="utf-8") as file:
            # Begins a line of its own, whatever a killed process has left.
            file.write("\n" + json.dumps({"about": json.loads(key), "value": value}) + "\n")

    def _key(self, about: Mapping[str, object]) -> str:
        return _as_key({**self._about, **about})


def source_digest() -> str:
    """A checksum of the source code that is measured, and of that which measures."""
    digest = hashlib.sha256()
    for path in sorted(path for source in _SOURCES for path in _modules(ROOT / source)):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def file_sizes(*paths: Path) -> dict[str, int]:
    """Sizes by name, of files that are written from a fixed seed."""
    return {path.name: path.stat().st_size for path in paths}


def _modules(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    found = (path for path in source.rglob("*.py") if ".venv" not in path.parts)
    return [path for path in found if path.parent.name != "peers" or path.name not in _NOT_MEASURING]


def _lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError, KeyError, TypeError):  # the last line of a process that was killed
            entry = json.loads(line)
            found.append((_as_key(entry["about"]), dict(entry["value"])))
    return found


def _as_key(about: object) -> str:
    return json.dumps(about, sort_keys=True)
