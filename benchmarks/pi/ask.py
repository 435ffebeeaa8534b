"""Ask a bundle, and write down what came of it: the same script here and on the board, of the runtime only.

python -m benchmarks.pi.ask ORDER ANSWERS
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from benchmarks.processes import peak_rss
from edgevlm_runtime.answer import Answer
from edgevlm_runtime.labels import Classification
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from edgevlm_runtime.parts import needed
from edgevlm_runtime.records import read_record, write_record

R = TypeVar("R")
_EVERY_CLASS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to ask of a bundle: questions about the first image, or classes and features of all images.

    `labels` are for models without classes of their own.
    """

    bundle: str
    images: tuple[str, ...]
    questions: tuple[str, ...]
    labels: tuple[str, ...]
    max_tokens: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a bundle answered, and its process's peak RSS in bytes.

    Token ids of each question's answer, with the one that ended it; probabilities (images, classes) and features
    (images, dim). What a model does not give is empty.
    """

    peak_rss: int
    token_ids: tuple[tuple[int, ...], ...] = ()
    probabilities: tuple[tuple[float, ...], ...] = ()
    features: tuple[tuple[float, ...], ...] = ()


def ask(order: Order) -> Answers:
    """Ask the whole order, with the least memory, as `edgevlm run` does."""
    options = LoadOptions(engine="onnxruntime", threads=order.threads, low_memory=True)
    with load(order.bundle, options) as model:
        return _ask_questions(model, order) if "query" in model.manifest.tasks else _ask_images(model, order)


def read_file(cls: type[R], path: Path) -> R:
    """An Order or Answers; raises DamagedBundle where the file is something else."""
    return read_record(cls, json.loads(path.read_text(encoding="utf-8")), path.name)


def write_file(path: Path, record: Order | Answers) -> None:
    """Write a record for `read_file`."""
    path.write_text(json.dumps(write_record(record)), encoding="utf-8")


def _ask_questions(model: Model, order: Order) -> Answers:
    image = model.encode(order.images[0])
    options = GenerateOptions(max_tokens=order.max_tokens)
    end = needed(model.manifest.prompt, "prompt").eos_id
    ids = tuple(_with_end(model.query(image, question, options), end) for question in order.questions)
    return Answers(peak_rss=peak_rss(), token_ids=ids)


def _with_end(answer: Answer, end: int) -> tuple[int, ...]:
    return (*answer.token_ids, end) if answer.finish_reason == "stop" else answer.token_ids


def _ask_images(model: Model, order: Order) -> Answers:
    labels = order.labels if model.manifest.match is not None else None
    found = model.classify_many(order.images, top_k=_EVERY_CLASS, labels=labels)
    features = model.embed_many(order.images)
    return Answers(
        peak_rss=peak_rss(),
        probabilities=tuple(map(_by_class, found)),
        features=tuple(tuple(map(float, row)) for row in features),
    )


def _by_class(found: Classification) -> tuple[float, ...]:
    return tuple(label.probability for label in sorted(found.labels, key=lambda label: label.index))


if __name__ == "__main__":
    order_file, answers_file = map(Path, sys.argv[1:])
    write_file(answers_file, ask(read_file(Order, order_file)))
