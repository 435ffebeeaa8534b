"""Results as JSON beside the benchmarks, and as tables in the README between a pair of marks."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def save(name: str, result: dict[str, object]) -> None:
    """Write results/NAME.json, with the machine and the date."""
    RESULTS.mkdir(exist_ok=True)
    result = {"date": datetime.now(UTC).date().isoformat(), "machine": machine(), **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, object]:
    """Processor, cores and versions."""
    versions = {package: metadata.version(package) for package in ("numpy", "onnxruntime")}
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        **versions,
    }


def duration(ms: float) -> str:
    """Milliseconds, or seconds from one on, in three digits."""
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1e3:.3g} s"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_section(mark: str, text: str, path: Path = ROOT / "README.md") -> None:
    """Replace what stands between `<!-- MARK -->` and `<!-- /MARK -->`.

    Raises:
        ValueError: the file does not have both marks.
    """
    opening, closing = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    content = path.read_text(encoding="utf-8")
    before, found, rest = content.partition(opening)
    _, ended, after = rest.partition(closing)
    if not found or not ended:
        raise ValueError(f"{path}: no section {opening} ... {closing}")
    path.write_text(f"{before}{opening}\n{text.strip()}\n{closing}{after}", encoding="utf-8")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(names, platform.machine())
