"""One question about a new image and one more about the same, as the command line asks; imports only the runtime."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgevlm_runtime.model import load
from edgevlm_runtime.options import GenerateOptions, LoadOptions

_N_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Milliseconds until the model is loaded, until the first token of each answer, and the speed of the tokens."""

    load_ms: float
    first_token_ms: float
    second_question_ms: float
    tokens_per_second: float


def answer(bundle: Path, image: bytes, max_crops: int | None) -> Answered:
    """Load, ask about an image, and ask again. None is as many crops as the model looks at by itself."""
    options = GenerateOptions(max_tokens=_N_TOKENS)
    with load(bundle, LoadOptions(low_memory=True)) as model:
        start = time.perf_counter()
        encoded = model.encode(image, max_crops=max_crops)
        image_ms = 1e3 * (time.perf_counter() - start)
        first = model.query(encoded, "What is in this picture?", options)
        second = model.query(encoded, "How many objects are there?", options)
    return Answered(
        load_ms=first.timings.load_ms,
        first_token_ms=image_ms + first.timings.prefill_ms,
        second_question_ms=second.timings.prefill_ms,
        tokens_per_second=first.timings.tokens_per_second,
    )
