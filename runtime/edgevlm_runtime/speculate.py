"""Fewer decoder calls for an answer: tokens are guessed, and several are read at once that a single call would not.

Guesses never change an answer. Several tokens at once round otherwise than one by one, and leave other numbers in the
cache for all that comes after them, so a choice made after such a call counts only where its lead is out of rounding's
reach. Where it is not, everything since the last sure state is taken again, one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from itertools import takewhile
from typing import Protocol

import numpy as np

from edgevlm_runtime.decoder import Session, Step
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.sampling import Rules, suppress

# In standard deviations of a step's logits. Of 8 bits, where a rounding may turn into another integer, the largest
# change of any logit was 0.08 (nano, 0.5B and 2B; 1e-5 in float32), so that a lead changes by 0.16 at most.
SAFE_LEAD = 0.25
LONGEST_DRAFT = 4  # tokens: a step of more costs more than the last ones, seldom right, save
_LONGEST_MATCH, _SHORTEST_MATCH = 3, 2  # tokens


class Guesser(Protocol):
    """Guesses how an answer goes on."""

    def guess(self, ids: Sequence[int], limit: int) -> list[int]:
        """Up to `limit` tokens that may come after those of the answer so far."""
        ...


class PromptLookup:
    """Guesses that what followed the last few tokens where they occurred before will follow again."""

    def __init__(self, prompt: Sequence[int], longest: int) -> None:
        """`longest` limits what is guessed at once."""
        self._prompt = list(prompt)
        self._longest = longest

    def guess(self, ids: Sequence[int], limit: int) -> list[int]:
        """See `Guesser.guess`; of several places the last, of the longest match."""
        text = [*self._prompt, *ids]
        for length in range(_LONGEST_MATCH, _SHORTEST_MATCH - 1, -1):
            for start in range(len(text) - length - 1, -1, -1):
                if text[start : start + length] == text[-length:]:
                    return text[start + length :][: min(limit, self._longest)]
        return []


class Draft:
    """Guesses what a smaller model would write."""

    def __init__(self, session: Session, prompt: FloatArray, suppressed_ids: Sequence[int]) -> None:
        """The smaller model's session, and what it has yet to read of its prompt (tokens, dim)."""
        self._session = session
        self._prompt = prompt
        self._suppressed_ids = suppressed_ids
        self._read: list[int] | None = None  # what it has read of the answer; None before it has read the prompt

    def guess(self, ids: Sequence[int], limit: int) -> list[int]:
        """See `Guesser.guess`; nothing where the smaller model's context ends."""
        guesses: list[int] = []
        step = self._catch_up(ids)
        while step is not None:
            guesses.append(int(np.argmax(suppress(step.logits, self._suppressed_ids))))
            step = self._read_on(guesses[-1:]) if len(guesses) < min(limit, LONGEST_DRAFT) else None
        return guesses

    def _catch_up(self, ids: Sequence[int]) -> Step | None:
        """Forget guesses that were wrong and read the rest of the answer."""
        if self._read is None:
            if len(self._prompt) > self._session.left:
                return None
            self._session.prefill(self._prompt)
            self._read = []
        n_right = _n_same(self._read, ids[:-1])  # the last is read in any case, for its step
        self._session.rollback(len(self._read) - n_right)
        del self._read[n_right:]
        return self._read_on(ids[n_right:])

    def _read_on(self, ids: Sequence[int]) -> Step | None:
        if self._read is None or len(ids) > self._session.left:
            return None
        step = self._session.step(self._session.embed(ids))
        self._read += ids
        return step


class Speculation:
    """The steps of one answer: one at a time or, where there are guessers, several at once on tokens that are guessed.

    The session's cache must then forget exactly, see `Decoder.forgets_exactly`.
    """

    def __init__(self, session: Session, guessers: Sequence[Guesser], rules: Rules) -> None:
        self._session = session
        self._guessers = guessers
        self._rules = rules
        self._ready: deque[Step] = deque()
        self._unsure: list[FloatArray] = []  # embeddings (1, dim) that were read since several were at once

    @property
    def left(self) -> int:
        """Positions that are free behind the last step that was given out."""
        return self._session.left + len(self._ready)

    def step(self, ids: Sequence[int], embedding: FloatArray) -> Generator[None, None, Step]:
        """The step after an answer's tokens so far, of which `embedding` (1, dim) is the last, not yet read.

        Yields between decoder calls, where it may be closed; raises as `Decoder.run`.
        """
        if not self._ready:
            yield from self._read(embedding, self._guess(ids))
        return self._ready.popleft()

    def _guess(self, ids: Sequence[int]) -> list[int]:
        """What is worth reading: no more than the answer and the context have room for, and not its end."""
        limit = min(self._rules.max_tokens - len(ids), self._session.left) - 1
        if limit <= 0:
            return []
        with self._session.decoding():
            guesses = next(filter(None, (guesser.guess(ids, limit) for guesser in self._guessers)), [])
        return list(takewhile(lambda token: token not in self._rules.stop_ids and self._session.knows(token), guesses))

    def _read(self, embedding: FloatArray, guesses: Sequence[int]) -> Generator[None, None, None]:
        """Make the next step ready, and one more for every guess that is right."""
        if not guesses and not self._unsure:
            self._ready.append(self._session.step(embedding))
            return
        rows = np.concatenate((embedding, self._session.embed(guesses)))
        steps = self._session.step_each(rows)
        choices = [sure_choice(step.logits, self._rules.suppressed_ids) for step in steps]
        n_right = _n_same(choices, guesses)
        self._session.n_guessed += len(guesses)
        self._session.n_accepted += n_right
        self._session.rollback(len(guesses) - n_right)
        self._unsure += np.split(rows[: 1 + n_right], 1 + n_right)
        self._ready.extend(steps[:n_right])
        self._ready.append(steps[n_right] if choices[n_right] is not None else (yield from self._repeat()))

    def _repeat(self) -> Generator[None, None, Step]:
        """Read again, one by one, what is unsure; the last step."""
        unsure, self._unsure = self._unsure, []
        self._session.rollback(len(unsure))
        for embedding in unsure[:-1]:
            yield
            self._session.step(embedding)
        yield
        return self._session.step(unsure[-1])


def sure_choice(logits: FloatArray, suppressed_ids: Sequence[int]) -> int | None:
    """The greedy choice from logits (vocab,), None where rounding may be what decides it."""
    allowed = suppress(logits, suppressed_ids)
    token = int(np.argmax(allowed))
    lead = float(allowed[token] - np.partition(allowed, -2)[-2])
    return token if lead > SAFE_LEAD * float(logits.std()) else None


def may_guess(session: Session, options: GenerateOptions) -> bool:
    """Whether guesses are of use: to greedy choices that depend on nothing but logits, with a cache that allows it."""
    greedy = options.temperature == 0 and options.repetition_penalty == 1 and not options.reasoning
    return greedy and session.forgets_exactly


def _n_same(some: Sequence[int | None], others: Sequence[int]) -> int:
    """How many tokens are the same at the beginning of two sequences."""
    pairs = zip(some, others, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
