"""EdgeVLM against llama.cpp and eager PyTorch, in alternation on this machine.

python -m benchmarks.peers WORK [--size 2b|0.5b|nano|llava-mini|tinygpt-v] [--quick] [--resume] [--bundle DIR ...]
                                [--openvino] [--engine NAME ...] [--repeats N]

Bundles are WORK/2b-int8 and WORK/2b-int4, or WORK/llava-mini-int4 and the like, exported with random weights where
they are missing; llama.cpp's files are written to WORK/gguf. Writes benchmarks/results/peers.json, two drawings beside
it and the README's table, unless the machine was noisy. What was measured is kept in WORK as it comes: --resume goes on
from there.
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
from benchmarks.peers.models import find_bundles, shapes_of, sizes
from benchmarks.peers.publish import keep, publish
from benchmarks.peers.report import Results, render
from benchmarks.peers.rounds import Rounds, alternate
from benchmarks.peers.shapes import Shapes
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


def main() -> int:
    plan = read_plan()
    pin(plan.shapes.workload.threads)
    absent = absent_llama(plan.shapes)
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
    if plan.shapes.quick:
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
    parser.add_argument("work", type=Path, help="folder of bundles and llama.cpp's files: 2b 15 GB, llava-mini 24")
    parser.add_argument(
        "--quick", action="store_true", help="small shapes of that family, under 3 minutes, publishes nothing"
    )
    parser.add_argument("--size", choices=sizes(), default="2b")
    parser.add_argument("--resume", action="store_true", help="keep what an earlier run of the same files measured")
    parser.add_argument("--bundle", type=Path, action="append", help="a bundle of ours; more with each use")
    parser.add_argument("--openvino", action="store_true", help="OpenVINO IR also for llava-mini and tinygpt-v")
    parser.add_argument("--engine", action="append", help="an engine for the bundles; all that each is made for")
    parser.add_argument("--repeats", type=int, help="processes of each peer; 5, and 2 with --quick")
    options = parser.parse_args()
    shapes = shapes_of(options.size, quick=options.quick)
    options.work.mkdir(parents=True, exist_ok=True)
    repeats = options.repeats or (2 if options.quick else Rounds.repeats)
    about = {"versions": versions(), "machine": machine(), "source": source_digest()}
    return Plan(
        shapes=shapes,
        folder=options.work,
        bundles=tuple(options.bundle or find_bundles(shapes, options.work, openvino=options.openvino)),
        engines=tuple(options.engine) if options.engine else None,
        rounds=Rounds(repeats=repeats, more=0 if options.quick else Rounds.more),
        journal=Journal(options.work / f"peers-{shapes.name}.jsonl", about, resume=options.resume),
    )


def pin(threads: int) -> None:
    """Let this process and all that it starts use the same processors, one for each thread."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def absent_llama(shapes: Shapes) -> str | None:
    """Why llama.cpp takes no part, in one line; None where it does."""
    return f"llama.cpp has no port of {shapes.title}" if shapes.gguf is None else setup.missing()


def find_contestants(plan: Plan, absent: str | None) -> Iterator[Contestant]:
    """Ours, llama.cpp unless it is absent, PyTorch."""
    shapes = plan.shapes
    folder = plan.folder / "gguf" / shapes.name
    journal = None if shapes.quick else plan.journal
    theirs: Iterator[Contestant] = iter(())
    if absent is None and shapes.gguf is not None:
        theirs = llama_contestants(folder, shapes.gguf, shapes.workload, journal)
    return chain(our_contestants(plan.bundles, plan.engines), theirs, eager_contestants(shapes))


def find_limits(plan: Plan) -> Limits:
    """What the machine can do, measured now or before."""
    size = _QUICK_LIMIT_SIZE if plan.shapes.quick else _LIMIT_SIZE
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
