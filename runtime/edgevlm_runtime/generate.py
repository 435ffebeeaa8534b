"""The loop that writes an answer: prefill, pick, stop or go on, one decoder call per token.

Every generator here may be closed between two tokens; whoever lent the session's cache rolls it back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from edgevlm_runtime.answer import Answer, FinishReason, timings_of, usage_of
from edgevlm_runtime.decoder import Session, Step
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.manifest import PromptSpec
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.reasoning import Thoughts
from edgevlm_runtime.sampling import Rules, Sampler, suppress
from edgevlm_runtime.speculate import Guesser, Speculation
from edgevlm_runtime.tokenizer import StopScanner, TextStream, TextTokenizer

EmbedNext: TypeAlias = Callable[[int, FloatArray], FloatArray]
"""A token and the hidden state (1, dim) that it was picked from, to the embedding (1, dim) that is fed for it."""


class TokenLoop:
    """Prompt embeddings to token ids. What has come out so far can be read at any time."""

    def __init__(self, session: Session, sampler: Sampler, rules: Rules, guessers: Sequence[Guesser] = ()) -> None:
        """`guessers` where `may_guess`; they change nothing but the time it takes."""
        self._session = session
        self._sampler = sampler
        self._rules = rules
        self._steps = Speculation(session, guessers, rules)
        self.ids: list[int] = []
        self.finish_reason: FinishReason = "length"
        self.first_logits: FloatArray | None = None
        self.unfed: FloatArray | None = None  # the last token's embedding, where the decoder has not seen it

    def run(self, prompt: FloatArray, embed_next: EmbedNext) -> Iterator[int | None]:
        """Yield one token id after the other, never one that stops; None after a decoder call that gave no token.

        prompt is (tokens, dim). Raises as `Decoder.run`.
        """
        step = self._session.prefill(prompt)
        self.first_logits = step.logits
        token = self._sampler.pick(step.logits, self.ids)
        while token not in self._rules.stop_ids:
            self.ids.append(token)
            self.unfed = embed_next(token, step.hidden)
            yield token
            if len(self.ids) >= self._rules.max_tokens or not self._steps.left:
                return
            step = yield from self._steps.step(self.ids, self.unfed)
            token = self._pick(step)
        self.unfed = None
        self.finish_reason = "stop"

    def _pick(self, step: Step) -> int:
        return self._sampler.pick(suppress(step.logits, self._rules.suppressed_ids), self.ids)


def write_text(
    loop: TokenLoop, tokens: Iterator[int | None], text: TextStream, stops: StopScanner
) -> Generator[str, None, str]:
    """Yield a piece of text per token, often an empty one, and return the whole; a stop string ends it.

    `tokens` is a run of `loop`.
    """
    pieces: list[str] = []
    for token in tokens:
        pieces.append("" if token is None else stops.push(text.push(token)))
        yield pieces[-1]
        if stops.stopped:
            loop.finish_reason = "stop_string"
            return "".join(pieces)
    rest = stops.push(text.flush())
    if stops.stopped:
        loop.finish_reason = "stop_string"
    pieces.append(rest + stops.flush())
    yield pieces[-1]
    return "".join(pieces)


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes one model's answers. `load_ms` is passed on to their timings."""

    spec: PromptSpec
    tokenizer: TextTokenizer
    load_ms: float

    def write(
        self,
        session: Session,
        prompt: FloatArray,
        options: GenerateOptions,
        thoughts: Thoughts | None = None,
        guessers: Sequence[Guesser] = (),
    ) -> Generator[str, None, Answer]:
        """Answer a prompt (tokens, dim): yield a piece of text per token, often an empty one, and return the answer.

        With `thoughts` the prompt asks to think first. `guessers` as in `TokenLoop`.

        Raises:
            ContextOverflow: the prompt does not fit; an answer that does not fit ends with "length".
            EngineError: the decoder failed.
        """
        sampler = Sampler(options)
        if thoughts is not None:
            prompt = yield from think(session, prompt, sampler, thoughts, options.max_tokens)
        rules = Rules(
            stop_ids=(self.spec.eos_id, *self.spec.stop_ids),
            suppressed_ids=self.spec.suppressed_ids,
            max_tokens=options.max_tokens,
        )
        loop = TokenLoop(session, sampler, rules, guessers)
        tokens = loop.run(prompt, lambda token, hidden: session.embed((token,)))
        stops = StopScanner((*self.spec.stop_strings, *options.stop))
        text = yield from write_text(loop, tokens, TextStream(self.tokenizer), stops)
        if stops.found in self.spec.stop_strings:
            loop.finish_reason = "stop"  # the model's own way to end
        return Answer(
            text=text,
            token_ids=tuple(loop.ids),
            finish_reason=loop.finish_reason,
            usage=usage_of(session, len(loop.ids) + (0 if thoughts is None else thoughts.n_tokens)),
            timings=timings_of(session, self.load_ms),
            reasoning=None if thoughts is None else thoughts.reasoning(self.tokenizer),
            first_logits=loop.first_logits if options.logits else None,
        )


def think(
    session: Session, prompt: FloatArray, sampler: Sampler, thoughts: Thoughts, max_tokens: int
) -> Generator[str, None, FloatArray]:
    """Run the thoughts that a prompt (tokens, dim) asks for, yielding "" per token; return the answer's prompt.

    Room for that prompt and the beginning of an answer is kept free.
    """
    spec = thoughts.spec
    n_reserved = len(prompt) + len(spec.answer_prompt) + 1
    session.require(n_reserved + 1)
    rules = Rules(
        stop_ids=(spec.answer_id,),
        suppressed_ids=spec.suppressed_ids,
        max_tokens=min(max_tokens, session.left - n_reserved),
    )
    loop = TokenLoop(session, sampler, rules)
    for _ in loop.run(prompt, thoughts.embed_next):
        yield ""
    if loop.unfed is not None:
        session.step(loop.unfed)
    return session.embed(spec.answer_prompt)
