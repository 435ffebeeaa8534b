"""EdgeVLM against llama.cpp and eager PyTorch, in alternation on this machine.

python -m benchmarks.peers WORK [--quick] [--size 2b|0.5b] [--bundle DIR ...] [--engine NAME ...] [--repeats N]

Bundles are WORK/2b-int8, as `python -m benchmarks.full_size WORK` leaves it and exported where it is missing, and
WORK/2b-int4 where it is there; llama.cpp's files are written to WORK/gguf. Writes benchmarks/results/peers.json, two
drawings beside it and the README's table, unless the machine was noisy.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from benchmarks.full_size import export_int8
from benchmarks.peers import setup
from benchmarks.peers.contestants import Contestant, eager_contestants, llama_contestants, our_contestants
from benchmarks.peers.figures import MAX_SPREAD, noise, peer_figures
from benchmarks.peers.machine import Limits, describe, measure_limits
from benchmarks.peers.plots import draw_first_token, draw_speed
from benchmarks.peers.report import Results, render, shares, targets
from benchmarks.peers.versions import versions
from benchmarks.peers.workload import Run, Workload
from benchmarks.processes import measure
from benchmarks.random_checkpoint import SIZES
from benchmarks.tables import RESULTS, save, write_section
from edgevlm_export.families.moondream2.random_weights import write_random
from edgevlm_export.modules.moondream2 import Moondream2Config, RegionConfig, TextConfig, VisionConfig

# The published image and vocabulary, small in all else: every path is gone in a minute or two.
_QUICK = Moondream2Config(
    text=TextConfig(dim=512, ff_dim=2048, n_layers=4, n_heads=8, n_kv_heads=8),
    vision=VisionConfig(
        enc_dim=288, enc_ff_dim=1076, enc_n_layers=4, enc_n_heads=4, proj_inner_dim=1024, proj_out_dim=512
    ),
    region=RegionConfig(dim=512, inner_dim=1024),
)
_QUICK_WORKLOAD = Workload(answer_tokens=16, depths=(16, 746), sweep_tokens=8)
_LIMIT_SIZE, _QUICK_LIMIT_SIZE = 4096, 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, and how often."""

    size: str
    config: Moondream2Config
    workload: Workload
    folder: Path
    bundles: tuple[Path, ...]
    engines: tuple[str, ...]
    repeats: int

    @property
    def quick(self) -> bool:
        """Whether only the paths are tried, and nothing is published."""
        return self.size == "quick"


def main() -> int:
    plan = read_plan()
    absent = setup.missing()
    contestants = list(find_contestants(plan, absent))
    limits = measure(measure_limits, plan.workload.threads, _QUICK_LIMIT_SIZE if plan.quick else _LIMIT_SIZE).value
    runs, failed = alternate(contestants, workload=plan.workload, repeats=plan.repeats)
    results = collect(plan, limits, contestants, runs, [*([absent] if absent else []), *failed])
    noisy = noise(results.figures)
    print(render(results))
    return _keep(results, runs, plan) if plan.quick or noisy else _publish(results, runs)


def read_plan() -> Plan:
    """The command line, and the bundles it means; int8 is exported where it is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of the bundles and llama.cpp's files, 11 GB for the 2B model")
    parser.add_argument("--quick", action="store_true", help="small shapes, under 3 minutes, publishes nothing")
    parser.add_argument("--size", choices=sorted(SIZES), default="2b")
    parser.add_argument("--bundle", type=Path, action="append", help="a bundle of ours; more with each use")
    parser.add_argument("--engine", action="append", help="an engine for the bundles; auto")
    parser.add_argument("--repeats", type=int, help="processes of each peer; 5, and 3 with --quick")
    options = parser.parse_args()
    size = "quick" if options.quick else options.size
    config = _QUICK if options.quick else SIZES[size]
    options.work.mkdir(parents=True, exist_ok=True)
    return Plan(
        size=size,
        config=config,
        workload=_QUICK_WORKLOAD if options.quick else Workload(),
        folder=options.work,
        bundles=tuple(options.bundle or _bundles(options.work, size, config)),
        engines=tuple(options.engine or ["auto"]),
        repeats=options.repeats or (3 if options.quick else 5),
    )


def find_contestants(plan: Plan, absent: str | None) -> chain[Contestant]:
    """Ours, llama.cpp where it is installed, PyTorch."""
    gguf = plan.folder / "gguf" / plan.size
    theirs = [] if absent else llama_contestants(gguf, plan.config, plan.workload, tune=not plan.quick)
    return chain(our_contestants(plan.config, plan.bundles, plan.engines), theirs, eager_contestants(plan.config))


def alternate(
    contestants: Sequence[Contestant], *, workload: Workload, repeats: int
) -> tuple[dict[str, list[Run]], list[str]]:
    """Runs of each, in turns that begin with another one each time; who fails takes no further part."""
    runs: dict[str, list[Run]] = {contestant.name: [] for contestant in contestants}
    failed: dict[str, str] = {}
    for repeat in range(repeats):
        turn = repeat % len(contestants)
        for contestant in (*contestants[turn:], *contestants[:turn]):
            if contestant.name in failed:
                continue
            try:
                run = contestant.run(replace(workload, seed=repeat))
            except RuntimeError as error:
                failed[contestant.name] = f"{contestant.name}: {error}"
                continue
            runs[contestant.name].append(run)
            _tell(f"{repeat + 1}/{repeats} {contestant.name}", run)
    return {name: done for name, done in runs.items() if name not in failed}, list(failed.values())


def collect(
    plan: Plan, limits: Limits, contestants: Sequence[Contestant], runs: dict[str, list[Run]], absent: Sequence[str]
) -> Results:
    """Figures of all who came through, and the memory of a process for one image."""
    measured = {contestant.name: contestant for contestant in contestants if contestant.name in runs}
    once = {
        name: contestant.one_image_rss(plan.workload)
        for name, contestant in measured.items()
        if contestant.one_image_rss is not None
    }
    return Results(
        size=plan.size,
        config=plan.config,
        workload=plan.workload,
        limits=limits,
        contestants=measured,
        figures={name: peer_figures(runs[name]) for name in measured},
        one_image_rss=once,
        absent=tuple(absent),
    )


def as_json(results: Results, runs: dict[str, list[Run]]) -> dict[str, object]:
    """Everything, every single run among it."""
    return {
        "size": results.size,
        "versions": versions(),
        "hardware": describe(),
        "workload": asdict(results.workload),
        "limits": asdict(results.limits),
        "targets": [asdict(target) for target in targets(results)],
        "not_measured": list(results.absent),
        "peers": {
            name: {
                "settings": results.contestants[name].settings,
                "figures": {key: asdict(value) for key, value in found.by_name.items()},
                "tokens_per_second_by_depth": {key: asdict(value) for key, value in found.speed_by_depth.items()},
                "one_image_rss": results.one_image_rss.get(name),
                "shares_of_limits": shares(results, name),
                "runs": [asdict(run) for run in runs[name]],
            }
            for name, found in results.figures.items()
        },
    }


def _publish(results: Results, runs: dict[str, list[Run]]) -> int:
    name = "peers" if results.size == "2b" else f"peers_{results.size}"
    save(name, as_json(results, runs))
    draw_first_token(RESULTS / f"{name}_first_token.svg", results.figures)
    draw_speed(RESULTS / f"{name}_speed.svg", results.figures)
    if results.size == "2b":
        write_section("peers", render(results))
    return 0


def _keep(results: Results, runs: dict[str, list[Run]], plan: Plan) -> int:
    """Write beside the bundles what is not published; fails where that is because of noise."""
    kept = plan.folder / f"peers-{plan.size}.json"
    kept.write_text(json.dumps(as_json(results, runs), indent=2) + "\n", encoding="utf-8")
    draw_first_token(kept.with_name(f"peers-{plan.size}-first-token.svg"), results.figures)
    draw_speed(kept.with_name(f"peers-{plan.size}-speed.svg"), results.figures)
    if plan.quick:
        return 0
    print(f"not published, runs differ by more than {MAX_SPREAD:.0%}; figures are in {kept}", file=sys.stderr)
    print("\n".join(noise(results.figures)), file=sys.stderr)
    return 1


def _bundles(work: Path, size: str, config: Moondream2Config) -> list[Path]:
    checkpoint, int8 = work / f"random-{size}", work / f"{size}-int8"
    if not int8.exists():
        if not checkpoint.exists():
            write_random(checkpoint, config)
        measure(export_int8, checkpoint, int8)
    found = (work / f"{size}-{precision}" for precision in ("int8", "int4"))
    return [bundle for bundle in found if bundle.exists()]


def _tell(who: str, run: Run) -> None:
    first = f"first token {run.first_token_ms / 1e3:.2f} s, again {run.second_question_ms:.0f} ms"
    print(f"{who}: {first}, {run.tokens_per_second:.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
