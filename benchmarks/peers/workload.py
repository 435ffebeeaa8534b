"""What every peer is asked, and what it says it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgevlm_runtime.image import Pixels


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One process's work: load, a first image, a new image with a question, the same image again, a long answer.

    The image is `side` pixels square, one crop. The question has `question_tokens`; about the kept image it is asked
    `question_times`. The answer has `answer_tokens`, always the likeliest. New images and answers are taken `times`, of
    which the medians count: a small model's take milliseconds, and one alone says little. A `full` one also writes
    `sweep_tokens` at each of `depths`, positions before the first new token of the `context`, and takes what needs more
    processes. `seed` makes the images: every round has others, so that nothing is answered from what an earlier one
    kept.
    """

    threads: int = 2
    side: int = 378
    context: int = 2048
    prefix_tokens: int = 730
    question_tokens: int = 16
    question_times: int = 3
    answer_tokens: int = 64
    times: int = 1
    depths: tuple[int, ...] = (16, 746, 1280, 1952)
    sweep_tokens: int = 32
    full: bool = True
    seed: int = 0

    def image(self, index: int) -> Pixels:
        """Noise, uint8 (side, side, 3)."""
        rng = np.random.default_rng((self.seed, index))
        return rng.integers(0, 256, (self.side, self.side, 3), np.uint8)

    @property
    def question_depth(self) -> int:
        """Positions of an image and a question about it."""
        return self.prefix_tokens + self.question_tokens

    def shortened(self) -> Workload:
        """For slow peers: shorter answers, and no depth beyond an image with its question."""
        depths = tuple(depth for depth in self.depths if depth <= self.question_depth)
        return replace(self, question_times=1, answer_tokens=16, depths=depths, sweep_tokens=8)


def workload_for(*, side: int, context: int, prefix_tokens: int, shortest: int = 0) -> Workload:
    """The published models' workload, at the size of others' images and prefixes, in no longer contexts.

    `shortest` is what comes before a question without an image: no depth is below it and a question.
    """
    usual = Workload()
    context = min(context, usual.context)
    shallow = {shortest + usual.question_tokens, prefix_tokens + usual.question_tokens}
    deep = (5 * context // 8, context - 3 * usual.sweep_tokens)
    return replace(usual, side=side, context=context, prefix_tokens=prefix_tokens, depths=(*sorted(shallow), *deep))


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process took. The phases of the first token: vision encoder with projection, prefix, question.

    `first_image_ms` is the first token about the image that comes right after loading, `restart_ms` that about an image
    which another process has read before. `peak_rss` in bytes is that of loading, two images and an answer,
    `one_image_rss` that of a process which answers about one image with the least memory. None is what a peer does not
    have or was not asked for. `position_bytes` is what the cache takes for one position.
    """

    first_image_ms: float
    vision_ms: float
    prefix_ms: float
    question_ms: float
    second_question_ms: float
    tokens_per_second: float
    position_bytes: float
    load_ms: float | None = None
    peak_rss: int | None = None
    restart_ms: float | None = None
    one_image_rss: int | None = None
    depth_tokens_per_second: Mapping[int, float] = field(default_factory=dict)

    @property
    def first_token_ms(self) -> float:
        """First token about a new image, the model being loaded."""
        return self.vision_ms + self.prefix_ms + self.question_ms


def read_run(fields: Mapping[str, Any]) -> Run:
    """A Run from JSON, whose keys are text."""
    depths = {int(depth): speed for depth, speed in fields.get("depth_tokens_per_second", {}).items()}
    return Run(**{**fields, "depth_tokens_per_second": depths})
