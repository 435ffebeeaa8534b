"""Which engine and how many threads were measured to be fastest on this machine: EDGEVLM_HOME/tuned.json.

A record belongs to one bundle, one processor with so many usable cores, and the installed versions of the engines:
after a change of any of them it is as none. It is only an optimization: a file that can not be read is an empty one.
"""

from __future__ import annotations

import json
import logging
import os
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.checksums import write_atomically
from edgevlm_runtime.engines.choice import ENGINES, PACKAGES
from edgevlm_runtime.engines.threads import VARIABLE, physical_cores
from edgevlm_runtime.errors import DamagedBundle
from edgevlm_runtime.home import home
from edgevlm_runtime.options import LOAD_RANGES, LoadOptions
from edgevlm_runtime.records import read_record, write_record

_MAX_BYTES = 1 << 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was fastest, and the day when that was measured (ISO 8601, UTC)."""

    engine: str
    threads: int
    date: str

    def __str__(self) -> str:
        return f"{self.engine}, {self.threads} thread{'' if self.threads == 1 else 's'} ({self.date})"


def tuned_options(options: LoadOptions, bundle: Bundle) -> LoadOptions:
    """`options` with what was measured in place of what they leave open: engine "auto", and threads None.

    EDGEVLM_THREADS comes before what was measured, and threads of one engine say nothing about another.
    """
    if options.engine != "auto" and options.threads is not None:
        return options
    tuned = find(bundle)
    if tuned is None or options.engine not in ("auto", tuned.engine):
        return options
    is_open = options.threads is None and not os.environ.get(VARIABLE, "").strip()
    _log.info("tuned: %s", tuned)
    return replace(options, engine=tuned.engine, threads=tuned.threads if is_open else options.threads)


def find(bundle: Bundle) -> Tuned | None:
    """What was measured for a bundle on this machine as it is now, if anything."""
    records = _read()
    return _valid(records.get(_key(bundle))) if records else None


def remember(bundle: Bundle, engine: str, threads: int) -> Tuned:
    """Keep what was measured for a bundle on this machine, in place of what was before.

    Raises:
        OSError: the file can not be written.
    """
    tuned = Tuned(engine=engine, threads=threads, date=datetime.now(UTC).date().isoformat())
    _write({**_read(), _key(bundle): write_record(tuned)})
    return tuned


def forget(bundle: Bundle) -> bool:
    """Drop all that was measured for a bundle, with whatever engines; tells whether there was something.

    Raises:
        OSError: the file can not be written.
    """
    records = _read()
    kept = {key: record for key, record in records.items() if not key.startswith(bundle.fingerprint)}
    if len(kept) == len(records):
        return False
    _write(kept)
    return True


def machine() -> str:
    """Processor, usable cores and versions of engines: what a measurement holds for."""
    return ", ".join((_processor(), f"{physical_cores()} cores", *_versions()))


def _key(bundle: Bundle) -> str:
    return f"{bundle.fingerprint} {machine()}"


def _read() -> dict[str, object]:
    """All records by key."""
    with suppress(OSError, ValueError, RecursionError), _path().open("rb") as file:
        records = json.loads(file.read(_MAX_BYTES))
        if isinstance(records, dict):
            return records
    return {}


def _write(records: dict[str, object]) -> None:
    _path().parent.mkdir(parents=True, exist_ok=True)
    write_atomically(_path(), json.dumps(records, indent=1) + "\n")


def _path() -> Path:
    return home() / "tuned.json"


def _valid(record: object) -> Tuned | None:
    with suppress(DamagedBundle):
        tuned = read_record(Tuned, record, "tuned.json")
        if tuned.engine != "auto" and tuned.engine in ENGINES and tuned.threads in LOAD_RANGES["threads"]:
            return tuned
    return None


def _processor() -> str:
    """The processor's name; Linux tells it on x86, elsewhere the system's word for it has to do."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> list[str]:
    from importlib.metadata import PackageNotFoundError, version  # not at the top: it takes 10 ms

    found = []
    for package in PACKAGES.values():
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return found
