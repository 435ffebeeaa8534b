"""What a caller may choose: how a model is opened and how an answer is generated."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from edgevlm_runtime.errors import InvalidOption


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values an option may take, both ends included."""

    low: float
    high: float = math.inf
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        # A bool is an Integral to Python, but nobody means max_tokens=True.
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        return self.low <= float(value) <= self.high and math.isfinite(value)

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return (
            f"{kind} of at least {self.low:g}"
            if math.isinf(self.high)
            else f"{kind} from {self.low:g} to {self.high:g}"
        )


GENERATE_RANGES: Mapping[str, Range] = {
    "max_tokens": Range(low=1, whole=True),
    "temperature": Range(low=0),
    "top_p": Range(low=0, high=1),
    "top_k": Range(low=0, whole=True),
    "min_p": Range(low=0, high=1),
    "repetition_penalty": Range(low=0.01, high=100),
    "seed": Range(low=0, whole=True),
    "max_crops": Range(low=1, whole=True),
    "max_objects": Range(low=1, whole=True),
    "lookup": Range(low=0, high=16, whole=True),
}
LOAD_RANGES: Mapping[str, Range] = {
    "threads": Range(low=1, high=1024, whole=True),
    "context": Range(low=1, whole=True),
    "image_memory_mb": Range(low=0, whole=True),
}


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """How one answer is generated; the defaults are greedy and therefore reproducible.

    Length: `max_tokens` of an answer (and as many again of reasoning), `stop` strings that end it and are not part
    of it, `max_objects` to detect or point at.
    Sampling, where `temperature` is above 0: `top_k` (0 is off), then `top_p` (1 is off), then `min_p` (0 is off),
    seeded by `seed` (None is a new seed every time). `repetition_penalty` (1 is off) also acts on greedy decoding.
    Detail: `max_crops` limits the local crops of a large image; None is the model's own limit.
    Speed: `lookup` guesses up to so many tokens at once from what the question and the answer said before (0 is off).
    It never changes an answer, and has no effect where guesses can not be checked exactly: with sampling, a repetition
    penalty or reasoning, and where the engine keeps the decoder's cache itself, as OpenVINO does.
    Extras: `reasoning` thinks before it answers; `logits` keeps the first token's logits in the answer.

    Raises:
        InvalidOption: a value is out of its range.
    """

    max_tokens: int = 768
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_crops: int | None = None
    reasoning: bool = False
    max_objects: int = 50
    logits: bool = False
    lookup: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, GENERATE_RANGES)
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise InvalidOption(f"stop is {self.stop!r}, but must be a tuple of strings that are not empty")


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a model is opened: `engine` is an engine's name or "auto"; `threads` None is one per physical core. See
    `tuning` for what was measured on this machine, which comes before both defaults.

    `low_memory` closes the image encoder after each image: a quarter less memory while answering, and one more opening
    for each further image. `image_memory_mb` is how much of encoded images is kept in memory, so that asking about the
    same pixels again needs no encoding; nothing where `low_memory`. `image_cache` keeps them on disk as well, under
    EDGEVLM_HOME, for other processes and later ones.
    `context` is how many tokens an image, a question and its answer may take together, and so limits the memory of the
    decoder's cache; None is as many as the model knows.
    `draft` is the folder of a smaller bundle with the same tokenizer, which guesses tokens for the model as
    `GenerateOptions.lookup` does, also where that is 0; it is opened with the first image or question.

    Raises:
        InvalidOption: a value is out of its range.
    """

    engine: str = "auto"
    threads: int | None = None
    context: int | None = None
    low_memory: bool = False
    image_memory_mb: int = 512
    image_cache: bool = False
    draft: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, LOAD_RANGES)


def check_ranges(options: Any, ranges: Mapping[str, Range]) -> None:
    """Raise InvalidOption for the first field of `options` out of its range; None, where it is the default, is free."""
    for name, allowed in ranges.items():
        value = getattr(options, name)
        if value not in allowed and not (value is None and getattr(type(options), name) is None):
            raise InvalidOption(f"{name} is {value!r}, but must be {allowed}")
