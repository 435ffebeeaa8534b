"""EdgeVLM as a peer: a bundle through the runtime, in processes of their own."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peers.workload import Run, Workload
from benchmarks.processes import measure, peak_rss
from edgevlm_runtime.answer import Answer
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.model import VISION_ROLES, Model, load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from edgevlm_runtime.parts import needed
from edgevlm_runtime.vision import VisionTower


def run(bundle: Path, engine: str, workload: Workload) -> Run:
    """One process's work; two more give the image encoder's share of an image, and the same image after a restart."""
    vision_ms = measure(encode_crop, bundle, engine, workload).value
    with tempfile.TemporaryDirectory() as home:  # nothing is remembered from an earlier run
        measured = measure(work, bundle, engine, workload, vision_ms, home).value
        restart_ms = measure(ask_after_restart, bundle, engine, workload, home).value
    return replace(measured, restart_ms=restart_ms)


def one_image_rss(bundle: Path, engine: str, workload: Workload) -> int:
    """Peak RSS in bytes of a process that answers about one image, as `edgevlm run` does."""
    return measure(answer_once, bundle, engine, workload).value


def encode_crop(bundle: Path, engine: str, workload: Workload) -> float:
    """Milliseconds of the image encoder and the projection for one crop, after a first."""
    opened = open_bundle(bundle)
    graphs = Graphs(opened, open_engine(engine, workload.threads))
    tower = VisionTower(needed(opened.manifest.image, "image"), *(graphs.open(role) for role in VISION_ROLES))
    tower.encode(workload.image(0))
    start = time.perf_counter()
    tower.encode(workload.image(1))
    return 1e3 * (time.perf_counter() - start)


def answer_once(bundle: Path, engine: str, workload: Workload) -> int:
    """Load, answer a question about one image with the least memory; the process's peak RSS."""
    options = LoadOptions(engine=engine, threads=workload.threads, low_memory=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["EDGEVLM_HOME"] = home
        with load(bundle, options) as model:
            model.query(workload.image(0), "?", GenerateOptions(max_tokens=workload.answer_tokens))
        return peak_rss()


def work(bundle: Path, engine: str, workload: Workload, vision_ms: float, home: str) -> Run:
    """The workload, in this process."""
    os.environ["EDGEVLM_HOME"] = home
    with load(bundle, LoadOptions(engine=engine, threads=workload.threads)) as model:
        return _Asked(model, workload).run(vision_ms)


def ask_after_restart(bundle: Path, engine: str, workload: Workload, home: str) -> float:
    """Milliseconds to the first token about the image of `work`, in a new process that has loaded the model."""
    os.environ["EDGEVLM_HOME"] = home
    with load(bundle, LoadOptions(engine=engine, threads=workload.threads)) as model:
        words = "?" * workload.question_tokens
        start = time.perf_counter()
        model.query(workload.image(1), words, GenerateOptions(max_tokens=1))
        return 1e3 * (time.perf_counter() - start)


@dataclass(frozen=True)
class _Asked:
    """A model under the workload."""

    model: Model
    workload: Workload

    def run(self, vision_ms: float) -> Run:
        start = time.perf_counter()
        image = self.model.encode(self.workload.image(0))
        template_tokens = self._ask(image, 1, 1)[0].usage.prompt_tokens - 1
        first_image_ms = 1e3 * (time.perf_counter() - start)
        n_words = self.workload.question_tokens - template_tokens
        start = time.perf_counter()
        image = self.model.encode(self.workload.image(1))
        image_ms = 1e3 * (time.perf_counter() - start)
        first, _ = self._ask(image, n_words, 1)
        second, speed = self._ask(image, n_words, self.workload.answer_tokens)
        return Run(
            load_ms=first.timings.load_ms,
            first_image_ms=first_image_ms,
            vision_ms=vision_ms,
            prefix_ms=image_ms - vision_ms,
            question_ms=first.timings.prefill_ms,
            second_question_ms=second.timings.prefill_ms,
            tokens_per_second=speed,
            peak_rss=peak_rss(),
            depth_tokens_per_second={
                depth: self._speed_at(image, depth, template_tokens) for depth in self.workload.depths
            },
        )

    def _speed_at(self, image: EncodedImage, depth: int, template_tokens: int) -> float:
        prefix = self.workload.prefix_tokens
        about = image if depth > prefix + template_tokens else None
        n_words = max(1, depth - template_tokens - (0 if about is None else prefix))
        return self._ask(about, n_words, self.workload.sweep_tokens)[1]

    def _ask(self, image: EncodedImage | None, n_words: int, max_tokens: int) -> tuple[Answer, float]:
        """The answer to a question of so many tokens, and its tokens per second with all that belongs to them."""
        start = time.perf_counter()
        answer = self.model.query(image, "?" * n_words, GenerateOptions(max_tokens=max_tokens))
        decode_s = time.perf_counter() - start - answer.timings.prefill_ms / 1e3
        n_steps = answer.timings.tokens_per_second * answer.timings.decode_ms / 1e3
        return answer, n_steps / decode_s
