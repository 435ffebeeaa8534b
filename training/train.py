"""`python -m training.train --out DIR --minutes N`: draw scenes, train the image encoder, then everything; resumes.

DIR keeps drawn scenes, checkpoints, a log, and in the end `nano/`, the published checkpoint.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from training.cache import draw_shard
from training.decoding import TorchAnswerer
from training.dense import DenseHeads
from training.evaluate import score_answerer
from training.instruct import Answering, instruct
from training.loop import LoopOptions
from training.model import new_model
from training.pretrain import pretrain
from training.publish import publish
from training.tokenizer import corpus, train_tokenizer

_SEEING_SHARE = 0.27
_TOKENIZER_SCENES = 4000
_FIRST_SHARDS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description="Train nano.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=110)
    parser.add_argument("--shards", type=int, default=60, help="thousands of scenes to draw")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw_scenes(options.out / "scenes", options.shards)
    run(options.out, options.minutes)


def run(folder: Path, minutes: float) -> None:
    """Both phases on the drawn scenes, then the published checkpoint and its scores."""
    report, cache = reporter(folder / "train.log"), folder / "scenes"
    tokenizer = _tokenizer(folder / "tokenizer.json")
    answering = Answering(new_model(), DenseHeads())
    seeing, talking = phases(folder, minutes)
    pretrain(answering.model, answering.heads, cache, seeing, report)
    instruct(answering, tokenizer, cache, talking, report)
    publish(answering.model, tokenizer, folder / "nano")
    report(json.dumps(score_answerer(TorchAnswerer(answering.model, tokenizer), 200).means(), indent=2))


def phases(folder: Path, minutes: float) -> tuple[LoopOptions, LoopOptions]:
    """First the image encoder alone, then everything."""
    seeing_minutes = minutes * _SEEING_SHARE
    seeing = LoopOptions(
        name="seeing",
        folder=folder,
        minutes=seeing_minutes,
        batch_size=32,
        matrix_lr=2e-3,
        other_lr=2e-3,
        final_lr=0.05,
    )
    answering = replace(
        seeing, name="answering", minutes=minutes - seeing_minutes, batch_size=24, other_lr=1.5e-3, final_lr=0.0
    )
    return seeing, answering


def draw_scenes(cache: Path, shards: int) -> None:
    """Draw the first shards, and the rest in a process beside the training, which picks them up as they appear."""
    cache.mkdir(parents=True, exist_ok=True)
    draw_shard(cache, "val", 0)
    for number in range(min(shards, _FIRST_SHARDS)):
        draw_shard(cache, "train", number)
    multiprocessing.get_context("spawn").Process(target=_draw_rest, args=(cache, shards), daemon=True).start()


def _draw_rest(cache: Path, shards: int) -> None:
    for number in range(_FIRST_SHARDS, shards):
        draw_shard(cache, "train", number)


def _tokenizer(path: Path) -> Tokenizer:
    if not path.exists():
        train_tokenizer(corpus(_TOKENIZER_SCENES)).save(str(path))
    return Tokenizer.from_file(str(path))


def reporter(path: Path) -> Callable[[str], None]:
    """Lines go to a file, with the time."""

    def report(line: str) -> None:
        with path.open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    return report


if __name__ == "__main__":
    main()
