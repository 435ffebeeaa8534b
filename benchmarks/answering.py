"""One answer about a new image and one more about the same, as an application would ask; imports only the runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgevlm_runtime.model import load
from edgevlm_runtime.options import GenerateOptions

_N_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Milliseconds until the model is loaded, until the first token of each answer, and the speed of the tokens."""

    load_ms: float
    first_token_ms: float
    second_question_ms: float
    tokens_per_second: float


def answer(bundle: Path, image: bytes, max_crops: int) -> Answered:
    """Load, ask about an image, and ask again."""
    options = GenerateOptions(max_tokens=_N_TOKENS, max_crops=max_crops)
    with load(bundle) as model:
        first = model.query(image, "What is in this picture?", options)
        encoded = model.encode(image, max_crops=1)
        second = model.query(encoded, "How many objects are there?", options)
    return Answered(
        load_ms=first.timings.load_ms,
        first_token_ms=first.timings.image_ms + first.timings.prefill_ms,
        second_question_ms=second.timings.prefill_ms,
        tokens_per_second=first.timings.tokens_per_second,
    )
