"""EdgeVLM against llama.cpp and eager PyTorch, in alternation on this machine.

python -m benchmarks.peers WORK [--size 2b|0.5b|nano] [--quick] [--resume] [--bundle DIR ...] [--engine NAME ...]
                                [--repeats N]

Bundles are WORK/2b-int8 and WORK/2b-int4, exported with random weights where they are missing; llama.cpp's files are
written to WORK/gguf. Writes benchmarks/results/peers.json, two drawings beside it and the README's table, unless the
machine was noisy. What was measured is kept in WORK as it comes: --resume goes on from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from benchmarks.peers import setup
from benchmarks.peers.contestants import Contestant, eager_contestants, llama_contestants, our_contestants
from benchmarks.peers.figures import noise, peer_figures, too_few
from benchmarks.peers.journal import Journal, source_digest
from benchmarks.peers.machine import Limits, describe, measure_limits
from benchmarks.peers.models import QUICK, Shapes, find_bundles, shapes_of, sizes
from benchmarks.peers.publish import keep, publish
from benchmarks.peers.report import Results, render
from benchmarks.peers.rounds import Rounds, alternate
from benchmarks.peers.versions import versions
from benchmarks.peers.workload import Run, Workload, read_run
from benchmarks.processes import measure
from benchmarks.tables import machine

_LIMIT_SIZE, _QUICK_LIMIT_SIZE = 4096, 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is compared, how often, and where files are; `engines` None are those that each bundle is made for."""

    shapes: Shapes
    folder: Path
    bundles: tuple[Path, ...]
    engines: tuple[str, ...] | None
    rounds: Rounds
    journal: Journal

    @property
    def quick(self) -> bool:
        """Whether only the paths are tried, and nothing is published."""
        return self.shapes.name == QUICK


def main() -> int:
    plan = read_plan()
    pin(plan.shapes.workload.threads)
    absent = setup.missing()
    contestants = list(find_contestants(plan, absent))
    limits = find_limits(plan)
    asked = alternate(contestants, Asking(plan.journal), plan.shapes.workload, plan.rounds)
    results = Results(
        shapes=plan.shapes,
        limits=limits,
        contestants={contestant.name: contestant for contestant in contestants if contestant.name in asked.runs},
        figures={name: peer_figures(runs) for name, runs in asked.runs.items()},
        absent=(*([absent] if absent else []), *asked.failed.values()),
    )
    print(render(results))
    if plan.quick:
        keep(results, asked.runs, plan.folder)
        return 0
    if doubts := [*too_few(asked.runs), *noise(results.figures)]:
        kept = keep(results, asked.runs, plan.folder)
        print("\n".join([f"not published, figures are in {kept}:", *doubts]), file=sys.stderr)
        return 1
    publish(results, asked.runs)
    return 0


def read_plan() -> Plan:
    """The command line, and the bundles it means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of the bundles and llama.cpp's files, 15 GB for the 2B model")
    parser.add_argument("--quick", action="store_true", help="small shapes, under 3 minutes, publishes nothing")
    parser.add_argument("--size", choices=sizes(), default="2b")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run of the same files measured")
    parser.add_argument("--bundle", type=Path, action="append", help="a bundle of ours; more with each use")
    parser.add_argument("--engine", action="append", help="an engine for the bundles; all that each is made for")
    parser.add_argument("--repeats", type=int, help="processes of each peer; 5, and 2 with --quick")
    options = parser.parse_args()
    shapes = shapes_of(QUICK if options.quick else options.size)
    options.work.mkdir(parents=True, exist_ok=True)
    repeats = options.repeats or (2 if options.quick else Rounds.repeats)
    about = {"versions": versions(), "machine": machine(), "source": source_digest()}
    return Plan(
        shapes=shapes,
        folder=options.work,
        bundles=tuple(options.bundle or find_bundles(shapes, options.work)),
        engines=tuple(options.engine) if options.engine else None,
        rounds=Rounds(repeats=repeats, more=0 if options.quick else Rounds.more),
        journal=Journal(options.work / f"peers-{shapes.name}.jsonl", about, resume=options.resume),
    )


def pin(threads: int) -> None:
    """Let this process and all that it starts use the same processors, one for each thread."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def find_contestants(plan: Plan, absent: str | None) -> Iterator[Contestant]:
    """Ours, llama.cpp where it is installed, PyTorch."""
    config, workload = plan.shapes.config, plan.shapes.workload
    gguf = plan.folder / "gguf" / plan.shapes.name
    journal = None if plan.quick else plan.journal
    theirs = [] if absent else llama_contestants(gguf, config, workload, journal)
    return chain(our_contestants(plan.bundles, plan.engines), theirs, eager_contestants(config))


def find_limits(plan: Plan) -> Limits:
    """What the machine can do, measured now or before."""
    size = _QUICK_LIMIT_SIZE if plan.quick else _LIMIT_SIZE
    about = {"limits": size, "threads": plan.shapes.workload.threads, "hardware": describe()}
    known = plan.journal.find(about)
    if known is None:
        known = asdict(measure(measure_limits, plan.shapes.workload.threads, size).value)
        plan.journal.add(about, known)
    return Limits(**known)


@dataclass(frozen=True)
class Asking:
    """Asks a contestant, unless the journal has its answer."""

    journal: Journal

    def __call__(self, contestant: Contestant, workload: Workload) -> Run:
        about = {
            "peer": contestant.name,
            "settings": contestant.settings,
            "files": contestant.files,
            "workload": asdict(workload),
        }
        known = self.journal.find(about)
        if known is not None:
            return read_run(known)
        start = time.perf_counter()
        run = contestant.run(workload)
        self.journal.add(about, asdict(run))
        _tell(f"{workload.seed + 1} {contestant.name}, {time.perf_counter() - start:.0f} s", run)
        return run


def _tell(who: str, run: Run) -> None:
    first = f"first token {run.first_token_ms / 1e3:.2f} s, again {run.second_question_ms:.0f} ms"
    print(f"{who}: {first}, {run.tokens_per_second:.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
