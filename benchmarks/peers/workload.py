"""What every peer is asked, and what it says it took."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgevlm_runtime.image import Pixels


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One process's work: load, a first image, a new image with a question, the same image again, long answers.

    The image is `side` pixels square, one crop. The question has `question_tokens`, the answer `answer_tokens`, always
    the likeliest. At each of `depths`, positions before the first new token, `sweep_tokens` more are written. `seed`
    makes the images; every process gets another, so that nothing is answered from a cache on disk.
    """

    threads: int = 2
    side: int = 378
    prefix_tokens: int = 730
    question_tokens: int = 16
    answer_tokens: int = 64
    depths: tuple[int, ...] = (16, 746, 1250, 1950)
    sweep_tokens: int = 32
    seed: int = 0

    def image(self, index: int) -> Pixels:
        """Noise, uint8 (side, side, 3)."""
        rng = np.random.default_rng((self.seed, index))
        return rng.integers(0, 256, (self.side, self.side, 3), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process took. The phases of the first token: vision encoder with projection, prefix, question.

    `first_image_ms` is the first token about the image that comes right after loading, `restart_ms` that about an image
    which another process has read before, 0 where that is not asked for. `peak_rss` in bytes is that of loading, two
    images and an answer.
    """

    load_ms: float
    first_image_ms: float
    vision_ms: float
    prefix_ms: float
    question_ms: float
    second_question_ms: float
    tokens_per_second: float
    peak_rss: int
    restart_ms: float = 0.0
    depth_tokens_per_second: dict[int, float] = field(default_factory=dict)

    @property
    def first_token_ms(self) -> float:
        """First token about a new image, the model being loaded."""
        return self.vision_ms + self.prefix_ms + self.question_ms
