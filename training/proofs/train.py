"""`python -m training.proofs.train NAME --minutes N --out DIR`: draw scenes, train, write DIR/NAME/, the checkpoint.

DIR keeps drawn scenes, states to go on from with --resume (every few minutes) and a log. Minutes on a CPU are the
processor's, for each thread, so that a busy machine takes longer and learns no less; on a GPU they are the clock's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch

from training.dialogue import Exchange
from training.loop import LoopOptions
from training.proofs.asking import WEIGHTS, asked
from training.proofs.catalog import PROOFS
from training.proofs.lessons import Answering, Lessons, learn_to_answer, learn_to_see, take_encoder
from training.scenes import scene
from training.speed import CPU
from training.train import draw_scenes, reporter

_SEEING_SHARE = 0.33
_TOKENIZER_SCENES = 1500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=PROOFS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--scenes", type=Path, help="a folder of drawn scenes to share; DIR/scenes if not given")
    parser.add_argument("--shards", type=int, default=40, help="thousands of scenes to draw")
    parser.add_argument("--encoder", type=Path, help="seeing.pt of a run with the same image encoder, as first phase")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=24, help="images learned at once")
    parser.add_argument("--device", type=torch.device, default=CPU, help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches beside a GPU")
    parser.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    options = parser.parse_args()
    if not options.resume and any(options.out.glob("*.pt")):
        parser.error(f"{options.out} holds a run; go on with it by --resume, or name another folder")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    cache = options.scenes or options.out / "scenes"
    draw_scenes(cache, options.shards)
    run(options, cache)


def run(options: argparse.Namespace, cache: Path) -> None:
    """Both phases, then the checkpoint."""
    report = reporter(options.out / "train.log")
    torch.manual_seed(0)
    answering = Answering(PROOFS[options.name].new()).to(options.device)
    folder = options.out / options.name
    if not folder.exists():
        unfinished = options.out / f"{options.name}.tmp"
        answering.learner.prepare(unfinished, _corpus())
        unfinished.rename(folder)
    seeing, talking = _phases(options)
    if options.encoder is None:
        learn_to_see(answering, cache, seeing, report)
    else:
        take_encoder(answering, options.encoder)
    lessons = Lessons(cache, answering.learner, answering.learner.layouts(folder), options.batch)
    learn_to_answer(answering, lessons, options.workers, talking, report)
    answering.learner.cpu().publish(folder)
    report(f"published in {folder}")


def _phases(options: argparse.Namespace) -> tuple[LoopOptions, LoopOptions]:
    def phase(name: str, share: float, other_lr: float, final_lr: float) -> LoopOptions:
        return LoopOptions(
            name=name,
            folder=options.out,
            minutes=share * options.minutes,
            matrix_lr=2e-3,
            other_lr=other_lr,
            final_lr=final_lr,
            batch_size=options.batch,
            device=options.device,
            clock=time.monotonic if options.device.type != "cpu" else lambda: time.process_time() / options.threads,
        )

    return phase("seeing", _SEEING_SHARE, 2e-3, 0.05), phase("answering", 1 - _SEEING_SHARE, 1.5e-3, 0.0)


def _corpus() -> Iterator[Exchange]:
    """What is said, to train tokenizers on."""
    rng = Random(0)
    for index in range(_TOKENIZER_SCENES):
        drawn = scene("train", index)
        for topic in WEIGHTS:
            yield from asked(drawn, rng, topic)[:2]


if __name__ == "__main__":
    main()
