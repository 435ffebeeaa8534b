"""What a model gives back, as frozen records. Coordinates are fractions of the upright image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edgevlm_runtime.decoder import Session
from edgevlm_runtime.engines import FloatArray

FinishReason: TypeAlias = Literal["stop", "length", "stop_string"]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of the text prompt, of what was generated (with reasoning; steps of regions), and of the image.

    `prompt_tokens` are all of the prompt's, also the first ones that the model had read for an earlier question.
    `guessed_tokens` were read ahead of the model's choice, see `GenerateOptions.lookup`; `accepted_tokens` of them
    were right.
    """

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int
    guessed_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall times of the model's parts, without a caller's own time between the pieces of a stream.

    `load_ms` is spent once per model; `image_ms` is 0 for an image that was already encoded; `tokens_per_second`
    counts those that the decoder read one by one or that were guessed right, 0 where there were none.
    """

    load_ms: float
    image_ms: float
    prefill_ms: float
    decode_ms: float
    tokens_per_second: float


@dataclass(frozen=True, kw_only=True)
class Point:
    """A place in the image."""

    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in the image; an object cut off by the image's border may reach outside 0 to 1."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """Points that characters `start` to `end` (excluded) of a reasoning's text are about."""

    start: int
    end: int
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class Reasoning:
    """What a model thought before it answered."""

    text: str
    grounding: tuple[Grounding, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A generated text.

    `token_ids` are all that were generated for the answer, without the one that ended it but with those of a stop
    string. `finish_reason`: "stop", the model ended it; "length", max_tokens or the context did; "stop_string".
    `first_logits` (vocab,) float32 are those that the first token was chosen from, where the options ask for them.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    reasoning: Reasoning | None = None
    first_logits: FloatArray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Objects found, in the model's order."""

    objects: tuple[Box, ...]
    usage: Usage
    timings: Timings


@dataclass(frozen=True, kw_only=True)
class Points:
    """Places found, in the model's order."""

    points: tuple[Point, ...]
    usage: Usage
    timings: Timings


def usage_of(session: Session, completion_tokens: int) -> Usage:
    """What a session has used."""
    return Usage(
        prompt_tokens=session.prompt_tokens,
        completion_tokens=completion_tokens,
        image_tokens=session.image_tokens,
        guessed_tokens=session.n_guessed,
        accepted_tokens=session.n_accepted,
    )


def timings_of(session: Session, load_ms: float) -> Timings:
    """What a session has taken."""
    return Timings(
        load_ms=load_ms,
        image_ms=session.image_ms,
        prefill_ms=session.prefill_ms,
        decode_ms=session.decode_ms,
        tokens_per_second=1e3 * session.n_steps / session.decode_ms if session.decode_ms else 0.0,
    )
