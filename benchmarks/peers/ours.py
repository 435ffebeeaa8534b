"""EdgeVLM as a peer: a bundle through the runtime, in processes of their own."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.questions import Questions, questions_of
from benchmarks.peers.workload import Run, Workload
from benchmarks.processes import measure, peak_rss
from edgevlm_runtime.answer import Answer
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from edgevlm_runtime.parts import needed
from edgevlm_runtime.vision import open_tower

_NEVER = -1  # no token has this id
_CROPS = 3


def run(bundle: Path, engine: str, workload: Workload) -> Run:
    """One process's work; one more gives the image encoder's share of an image.

    Of a full workload, another answers about one image, as `edgevlm run` does, and the last asks about it again. Only
    these two keep images on disk, in a folder of their own.
    """
    options = LoadOptions(engine=engine, threads=workload.threads)
    questions = questions_of(open_bundle(bundle))  # here, so that the processes do not read the tokenizer twice
    with tempfile.TemporaryDirectory() as home:
        vision_ms = measure(encode_crop, bundle, options, workload, home).value
        measured = measure(work, bundle, options, workload, questions, vision_ms, home).value
        if not workload.full:
            return measured
        once = measure(answer_once, bundle, replace(options, low_memory=True, image_cache=True), workload, home).value
        options = replace(options, image_cache=True)
        restart_ms = measure(ask_after_restart, bundle, options, workload, questions, home).value
    return replace(measured, one_image_rss=once, restart_ms=restart_ms)


def encode_crop(bundle: Path, options: LoadOptions, workload: Workload, home: str) -> float:
    """Milliseconds of the image encoder and the projection for one crop: the median of a few, after a first."""
    os.environ["EDGEVLM_HOME"] = home
    opened = open_bundle(bundle)
    graphs = Graphs(opened, open_engine(options.engine, options.threads, opened.manifest))
    tower = open_tower(needed(opened.manifest.image, "image"), graphs)
    tower.encode(workload.image(0))
    taken = []
    for index in range(1, 1 + max(_CROPS, workload.times)):
        pixels = workload.image(index)
        start = time.perf_counter()
        tower.encode(pixels)
        taken.append(_ms(start))
    return statistics.median(taken)


def work(
    bundle: Path, options: LoadOptions, workload: Workload, questions: Questions, vision_ms: float, home: str
) -> Run:
    """The workload, in this process."""
    start = time.perf_counter()
    with _loaded(bundle, options, home) as model:
        asked = _Asked(model, workload, questions)
        ready = asked.first_image()
        first_image_ms = _ms(ready)
        return asked.run(load_ms=1e3 * (ready - start), first_image_ms=first_image_ms, vision_ms=vision_ms)


def answer_once(bundle: Path, options: LoadOptions, workload: Workload, home: str) -> int:
    """Load, and answer a question about one image; the process's peak RSS."""
    with _loaded(bundle, options, home) as model:
        model.query(workload.image(0), "?", GenerateOptions(max_tokens=workload.answer_tokens))
    return peak_rss()


def ask_after_restart(bundle: Path, options: LoadOptions, workload: Workload, questions: Questions, home: str) -> float:
    """Milliseconds to the first token about the image of `answer_once`, in a new process that has loaded the model."""
    with _loaded(bundle, options, home) as model:
        return _Asked(model, workload, questions).first_token_ms(workload.image(0))


@contextmanager
def _loaded(bundle: Path, options: LoadOptions, home: str) -> Iterator[Model]:
    """A model that never ends an answer by itself, its files checked."""
    os.environ["EDGEVLM_HOME"] = home
    opened = open_bundle(bundle)
    prompt = replace(needed(opened.manifest.prompt, "prompt"), eos_id=_NEVER, stop_ids=(), stop_strings=())
    with load(replace(opened, manifest=replace(opened.manifest, prompt=prompt)), options) as model:
        yield model


@dataclass(frozen=True)
class _Asked:
    """A model under the workload."""

    model: Model
    workload: Workload
    questions: Questions

    def first_image(self) -> float:
        """Ask about an image; the time when all graphs were open, which may be after `load`: before the first crop."""
        ready: list[float] = []
        image = self.model.encode(
            self.workload.image(0), checkpoint=lambda index, n_crops: ready.append(time.perf_counter())
        )
        self.first_token_ms(image)
        return ready[0]

    def run(self, *, load_ms: float, first_image_ms: float, vision_ms: float) -> Run:
        """Ask about new images, and about the last of them again.

        Raises:
            RuntimeError: an image takes other than the workload's positions.
        """
        workload = self.workload
        image_ms, question_ms = [], []
        for index in range(1, 1 + workload.times):
            pixels, start = workload.image(index), time.perf_counter()
            image = self.model.encode(pixels)
            image_ms.append(_ms(start))
            question_ms.append(self.first_token_ms(image))
        if image.positions != workload.prefix_tokens:
            raise RuntimeError(
                f"an image takes {image.positions} positions where {workload.prefix_tokens} are compared"
            )
        second = [self.first_token_ms(image) for _ in range(workload.question_times)]
        return Run(
            load_ms=load_ms,
            first_image_ms=first_image_ms,
            vision_ms=vision_ms,
            prefix_ms=statistics.median(image_ms) - vision_ms,
            question_ms=statistics.median(question_ms),
            second_question_ms=statistics.median(second),
            tokens_per_second=statistics.median(self._speed(image) for _ in range(workload.times)),
            peak_rss=peak_rss(),
            position_bytes=_cache_bytes(image) / image.positions,
            depth_tokens_per_second={depth: self._speed_at(image, depth) for depth in self._depths()},
        )

    def first_token_ms(self, image: Pixels | EncodedImage) -> float:
        """Milliseconds of an answer of one token, with all that belongs to it."""
        start = time.perf_counter()
        self._ask(image, self.workload.question_tokens, 1)
        return _ms(start)

    def _depths(self) -> tuple[int, ...]:
        return self.workload.depths if self.workload.full else ()

    def _speed_at(self, image: EncodedImage, depth: int) -> float:
        """Tokens per second after an image and a question; after a question alone where an image is too long.

        Of the decoder's steps alone: forgetting so long a question may take time that no answer waits for.
        """
        about = image if depth >= self.workload.question_depth else None
        n_before = 0 if about is None else image.positions
        return self._ask(about, depth - n_before, self.workload.sweep_tokens).timings.tokens_per_second

    def _speed(self, image: EncodedImage) -> float:
        """Tokens per second of an answer with all that belongs to it: choosing, detokenizing, cleaning up."""
        start = time.perf_counter()
        answer = self._ask(image, self.workload.question_tokens, self.workload.answer_tokens)
        return (len(answer.token_ids) - 1) / (time.perf_counter() - start - answer.timings.prefill_ms / 1e3)

    def _ask(self, image: Pixels | EncodedImage | None, prompt_tokens: int, max_tokens: int) -> Answer:
        """The answer to a prompt of so many tokens.

        Raises:
            RuntimeError: the prompt has another length.
        """
        question = self.questions.of(prompt_tokens, image=image is not None)
        # No guesses: random weights repeat themselves, so that they would be right more often than a model's.
        answer = self.model.query(image, question, GenerateOptions(max_tokens=max_tokens, lookup=0))
        if answer.usage.prompt_tokens != prompt_tokens or len(answer.token_ids) != max_tokens:
            raise RuntimeError(f"{answer.usage} where {prompt_tokens} and {max_tokens} tokens are asked for")
        return answer


def _cache_bytes(image: EncodedImage) -> int:
    """What the decoder's cache keeps of an image."""
    return image.nbytes - image.embeddings.nbytes - sum(state.nbytes for state in image.states)


def _ms(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
