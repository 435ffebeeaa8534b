"""Logits to a token id: filters that rule tokens out, then one strategy that picks.

Logits are float32 (vocab,); a token that may not be picked has -inf. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.options import GenerateOptions


@dataclass(frozen=True, kw_only=True)
class Rules:
    """When a sequence ends. `suppressed_ids` can not be picked, but for the first token, as in the references."""

    stop_ids: tuple[int, ...]
    suppressed_ids: tuple[int, ...]
    max_tokens: int


class LogitFilter(Protocol):
    """Changes logits before a token is picked."""

    def apply(self, logits: FloatArray, history: Sequence[int]) -> FloatArray:
        """Logits (vocab,) to logits; `history` are the tokens generated so far."""
        ...


class Strategy(Protocol):
    """Picks one token."""

    def pick(self, logits: FloatArray, rng: np.random.Generator) -> int:
        """The id of one token whose logit is not -inf."""
        ...


@dataclass(frozen=True)
class RepetitionPenalty:
    """Positive logits of tokens already generated are divided by `penalty`, negative ones multiplied (CTRL, 2019)."""

    penalty: float

    def apply(self, logits: FloatArray, history: Sequence[int]) -> FloatArray:
        seen = np.unique(np.asarray(history, np.int64))
        penalized = logits.copy()
        penalized[seen] = np.where(logits[seen] > 0, logits[seen] / self.penalty, logits[seen] * self.penalty)
        return penalized


@dataclass(frozen=True)
class Temperature:
    """Logits divided by `temperature`."""

    temperature: float

    def apply(self, logits: FloatArray, history: Sequence[int]) -> FloatArray:
        # Of the difference to the largest, so that a tiny temperature can not overflow it.
        return np.asarray((logits - logits.max()) / self.temperature, np.float32)


@dataclass(frozen=True)
class TopK:
    """The `k` likeliest tokens, and those that tie with the last of them."""

    k: int

    def apply(self, logits: FloatArray, history: Sequence[int]) -> FloatArray:
        k = min(self.k, len(logits))
        return _keep(logits, logits >= np.partition(logits, -k)[-k])


@dataclass(frozen=True)
class TopP:
    """The likeliest tokens: each whose likelier ones sum up to no more than `p`."""

    p: float

    def apply(self, logits: FloatArray, history: Sequence[int]) -> FloatArray:
        probabilities = softmax(logits)
        order = np.argsort(-probabilities, kind="stable")
        ranked = probabilities[order]
        kept = np.zeros(len(logits), bool)
        kept[order[np.cumsum(ranked) - ranked <= self.p]] = True
        return _keep(logits, kept)


@dataclass(frozen=True)
class MinP:
    """Tokens at least `p` times as likely as the likeliest."""

    p: float

    def apply(self, logits: FloatArray, history: Sequence[int]) -> FloatArray:
        return _keep(logits, np.exp(logits - logits.max()) >= self.p)


@dataclass(frozen=True)
class Greedy:
    """The likeliest token, the first of those that tie."""

    def pick(self, logits: FloatArray, rng: np.random.Generator) -> int:
        return int(np.argmax(logits))


@dataclass(frozen=True)
class Multinomial:
    """A token with the probability that softmax gives it."""

    def pick(self, logits: FloatArray, rng: np.random.Generator) -> int:
        candidates = np.flatnonzero(logits > -np.inf)
        cumulative = np.cumsum(softmax(logits[candidates]))
        index = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
        return int(candidates[min(int(index), len(candidates) - 1)])


class Sampler:
    """All choices of one generation: its filters in order, its strategy and its random numbers."""

    def __init__(self, options: GenerateOptions) -> None:
        self._filters = tuple(_filters(options))
        self._strategy: Strategy = Multinomial() if options.temperature > 0 else Greedy()
        self._rng = np.random.default_rng(options.seed)

    def pick(self, logits: FloatArray, history: Sequence[int]) -> int:
        """The next token's id, given logits (vocab,) and the ids generated so far."""
        for logit_filter in self._filters:
            logits = logit_filter.apply(logits, history)
        return self._strategy.pick(logits, self._rng)


def suppress(logits: FloatArray, token_ids: Iterable[int]) -> FloatArray:
    """A copy of the logits in which these tokens can not be picked."""
    suppressed = logits.copy()
    suppressed[list(token_ids)] = -np.inf
    return suppressed


def softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Probabilities in float64, so that sums over a large vocabulary stay exact enough to compare."""
    exponentials = np.exp(logits.astype(np.float64) - float(logits.max()))
    return np.asarray(exponentials / exponentials.sum())


def _filters(options: GenerateOptions) -> Iterable[LogitFilter]:
    if options.repetition_penalty != 1:
        yield RepetitionPenalty(options.repetition_penalty)
    if options.temperature == 0:
        return
    yield Temperature(options.temperature)
    if options.top_k > 0:
        yield TopK(options.top_k)
    if options.top_p < 1:
        yield TopP(options.top_p)
    if options.min_p > 0:
        yield MinP(options.min_p)


def _keep(logits: FloatArray, kept: npt.NDArray[np.bool_]) -> FloatArray:
    return np.where(kept, logits, np.float32(-np.inf))
