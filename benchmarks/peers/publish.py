"""Results as JSON, drawings and a section of the README; what is not published lies beside the bundles."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.peers.figures import peer_figures
from benchmarks.peers.machine import describe
from benchmarks.peers.plots import draw_first_token, draw_speed
from benchmarks.peers.report import Results, render, shares, targets
from benchmarks.peers.versions import versions
from benchmarks.peers.workload import Run
from benchmarks.tables import RESULTS, ROOT, machine, save, write_section

_MAIN = "2b"

Runs = Mapping[str, Sequence[Run]]


def publish(results: Results, runs: Runs) -> None:
    """Write the results; the 2B model's into the README, the others' into that of the benchmarks."""
    main = results.shapes.name == _MAIN
    name = "peers" if main else f"peers_{results.shapes.name}"
    save(name, as_json(results, runs))
    first_token, speed = draw(results, RESULTS, name)
    page = ROOT / "README.md" if main else ROOT / "benchmarks" / "README.md"
    folder = RESULTS.relative_to(page.parent).as_posix()
    pictures = f"![time to first token]({folder}/{first_token.name}) ![tokens per second]({folder}/{speed.name})"
    write_section(name.replace("_", " "), f"{render(results)}\n\n{pictures}", page)


def keep(results: Results, runs: Runs, folder: Path) -> Path:
    """Write the same beside the bundles; the file's path."""
    name = f"peers-{results.shapes.name}"
    kept = folder / f"{name}.json"
    content = {"machine": machine(), **as_json(results, runs)}
    kept.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draw(results, folder, name)
    (folder / f"{name}.md").write_text(render(results) + "\n", encoding="utf-8")
    return kept


def draw(results: Results, folder: Path, name: str) -> tuple[Path, Path]:
    """Both drawings."""
    first_token, speed = folder / f"{name}_first_token.svg", folder / f"{name}_speed.svg"
    draw_first_token(first_token, results.title, results.labeled())
    draw_speed(speed, results.title, results.labeled())
    return first_token, speed


def as_json(results: Results, runs: Runs) -> dict[str, object]:
    """Everything, every single run among it."""
    return {
        "size": results.shapes.name,
        "versions": versions(),
        "hardware": describe(),
        "workload": asdict(results.shapes.workload),
        "limits": asdict(results.limits),
        "targets": [asdict(target) for target in targets(results)],
        "not_measured": list(results.absent),
        "peers": {name: _peer(results, name, runs[name]) for name in results.figures},
    }


def _peer(results: Results, name: str, runs: Sequence[Run]) -> dict[str, object]:
    found, contestant = peer_figures(runs), results.contestants[name]
    return {
        "settings": contestant.settings,
        "default": contestant.is_default,
        "figures": {key: asdict(value) for key, value in found.by_name.items()},
        "tokens_per_second_by_depth": {key: asdict(value) for key, value in found.speed_by_depth.items()},
        "shares_of_limits": shares(results, name),
        "runs": [asdict(run) for run in runs],
    }
