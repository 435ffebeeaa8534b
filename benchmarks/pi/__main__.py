"""EdgeVLM on an emulated Raspberry Pi 5: does it answer as it does here, in how much memory and disk. Not: how fast.

python -m benchmarks.pi WORK

The first call makes the board's root in WORK and exports what is run (500 MB); delete WORK to begin anew. Writes
benchmarks/results/pi.json and the README's table, unless an answer differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.pi.ask import Order
from benchmarks.pi.compare import agreement
from benchmarks.pi.guest import Board, ask_here
from benchmarks.pi.models import Subject, subjects
from benchmarks.pi.report import Tried, as_json, render
from benchmarks.pi.root import N_CORES, make_root
from benchmarks.pi.wheels import install, installed
from benchmarks.tables import ROOT, save, write_section
from edgevlm_runtime.errors import EdgeVLMError

_IMAGES = ("scene.png", "hearts.png", "word.png", "digit.jpg")
_QUESTIONS = (
    "How many objects are there?",
    "Describe the image.",
    "What color is the square?",
    "Where is the heart?",
    "Is there a star?",
)
_LABELS = ("a circle", "a heart", "a word", "a digit")
_MAX_TOKENS = 48


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for the board's root, its packages and the bundles")
    work: Path = parser.parse_args().work.resolve()
    try:
        return measure(work)
    except (EdgeVLMError, RuntimeError, ValueError) as error:
        print(f"benchmarks.pi: {error}", file=sys.stderr)
        return 1


def measure(work: Path) -> int:
    """Set up, try every model, publish; 1 where a model answers differently.

    Raises:
        RuntimeError, ValueError: the board can not be set up, or a process on it failed or gave something else.
        EdgeVLMError: a model can not be exported or opened.
    """
    work.mkdir(parents=True, exist_ok=True)
    board = Board(root=work / "root", site=work / "site", bytecode=work / "bytecode")
    make_root(board.root)
    install(board.site, work)
    wheels = installed(board.site)
    tried = [try_on_both(subject, board, work / "runs") for subject in list(subjects(work / "bundles"))]
    print(render(tried, wheels))
    differing = [f"{each.name} {each.precision}" for each in tried if not each.passed]
    if differing:
        print(f"not published, answers differ: {'; '.join(differing)}", file=sys.stderr)
        return 1
    save("pi", as_json(tried, wheels))
    write_section("pi", render(tried, wheels))
    return 0


def try_on_both(subject: Subject, board: Board, folder: Path) -> Tried:
    """Ask a bundle there and here, and compare."""
    order = order_of(subject)
    there, resident = board.ask(order, folder / "board")
    here = ask_here(order, folder / "here")
    tried = Tried(
        name=subject.name,
        precision=subject.precision,
        agreement=agreement(order, there, here, subject.precision),
        resident=resident,
        board_peak=there.peak_rss,
        peak_here=here.peak_rss,
    )
    found = tried.agreement
    print(f"{tried.name} {tried.precision}: {found.equal} of {found.choices} the same, {found.tied} ties", flush=True)
    return tried


def order_of(subject: Subject) -> Order:
    """The same questions and images for all; a thread for each of the board's cores."""
    return Order(
        bundle=str(subject.bundle),
        images=tuple(str(ROOT / "examples" / image) for image in _IMAGES),
        questions=_QUESTIONS,
        labels=_LABELS,
        max_tokens=_MAX_TOKENS,
        threads=N_CORES,
    )


if __name__ == "__main__":
    sys.exit(main())
