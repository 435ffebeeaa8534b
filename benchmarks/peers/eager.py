"""The model in eager PyTorch: transformers' classes of the same shapes, all blocks with the same weights.

Sharing saves memory, not time: one block of a large model is larger than the processor's caches. So there are no
figures for memory and for loading. It is slow: it answers shortly, and at no depth beyond an image and a question.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor

from benchmarks.peers.costs import cache_values
from benchmarks.peers.eager_llava_mini import EagerLlavaMini
from benchmarks.peers.eager_moondream2 import EagerMoondream2
from benchmarks.peers.eager_parts import EagerModel
from benchmarks.peers.eager_tinygpt_v import EagerTinyGptV
from benchmarks.peers.shapes import ModelConfig
from benchmarks.peers.workload import Run, Workload
from benchmarks.processes import measure
from edgevlm_export.modules.llava_mini import LlavaMiniConfig
from edgevlm_export.modules.moondream2 import Moondream2Config
from edgevlm_export.torchvision_operators import declare_missing_operators

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def run(config: ModelConfig, dtype: str, workload: Workload) -> Run:
    """One process's work."""
    return measure(work, config, dtype, workload.shortened()).value


def work(config: ModelConfig, dtype: str, workload: Workload) -> Run:
    """The workload, in this process."""
    torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    peer = Peer(build(config, DTYPES[dtype], workload.prefix_tokens), config.text.vocab_size, workload)
    with torch.inference_mode():
        first = peer.new_image(0)
        new = [peer.new_image(1 + index) for index in range(workload.times)]
        phases = {phase: statistics.median(each[phase] for each in new) for phase in first}
        second = [peer.ask_again() for _ in range(workload.question_times)]
        return Run(
            first_image_ms=sum(first.values()),
            vision_ms=phases["vision_ms"],
            prefix_ms=phases["prefix_ms"],
            question_ms=phases["question_ms"],
            second_question_ms=statistics.median(ms for ms, _ in second),
            tokens_per_second=statistics.median(peer.answer_speed(second[-1][1]) for _ in range(workload.times)),
            position_bytes=cache_values(config.text) * DTYPES[dtype].itemsize,
            depth_tokens_per_second=peer.speeds() if workload.full else {},
        )


def build(config: ModelConfig, dtype: torch.dtype, prefix_tokens: int) -> EagerModel:
    """A model of those sizes; an image and the words before it are `prefix_tokens` of the decoder's."""
    declare_missing_operators()  # transformers imports torchvision where it is installed
    if isinstance(config, Moondream2Config):
        return EagerMoondream2(config, dtype, prefix_tokens)
    if isinstance(config, LlavaMiniConfig):
        return EagerLlavaMini(config, dtype, prefix_tokens)
    return EagerTinyGptV(config, dtype, prefix_tokens)


class Peer:
    """A model under the workload."""

    def __init__(self, model: EagerModel, vocab_size: int, workload: Workload) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._workload = workload

    def words(self, n_tokens: int) -> Tensor:
        """Random tokens (1, n_tokens)."""
        return torch.randint(0, self._vocab_size, (1, n_tokens))

    def new_image(self, index: int) -> dict[str, float]:
        """Read an image, the words before it and a question from nothing."""
        self._model.forget(0)
        pixels = torch.from_numpy(self._workload.image(index)).permute(2, 0, 1)[None]
        start = time.perf_counter()
        tokens = self._model.see(pixels.to(self._model.dtype) / 127.5 - 1)
        encoded = time.perf_counter()
        self._model.read_image(tokens)
        read = time.perf_counter()
        self._model.ask(self.words(self._workload.question_tokens))
        return {"vision_ms": 1e3 * (encoded - start), "prefix_ms": 1e3 * (read - encoded), "question_ms": _ms(read)}

    def write(self, token: Tensor, n_tokens: int) -> float:
        """Tokens per second of writing some more after a token (1, 1)."""
        start = time.perf_counter()
        for _ in range(n_tokens):
            token = self._model.read(token)
        return n_tokens / (time.perf_counter() - start)

    def answer_speed(self, token: Tensor) -> float:
        """Tokens per second of an answer that begins with a token (1, 1)."""
        self._model.forget(self._workload.question_depth)
        return self.write(token, self._workload.answer_tokens)

    def ask_again(self) -> tuple[float, Tensor]:
        """Milliseconds to the first token of another question about the image, and that token."""
        self._model.forget(self._workload.prefix_tokens)
        start = time.perf_counter()
        token = self._model.ask(self.words(self._workload.question_tokens))
        return _ms(start), token

    def speeds(self) -> dict[int, float]:
        """Tokens per second by depth, without an image; each goes on from what was read for the one before."""
        speeds, length = {}, 0
        for depth in sorted(self._workload.depths):
            self._model.forget(length)
            token = self._model.read(self.words(depth - length))
            speeds[depth] = self.write(token, self._workload.sweep_tokens)
            length = depth
        return speeds


def _ms(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
