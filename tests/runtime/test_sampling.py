"""Sampling against transformers' processors, the reference's top-p rule in plain Python, and drawn frequencies."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
)

from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.sampling import (
    Greedy,
    LogitFilter,
    MinP,
    Multinomial,
    RepetitionPenalty,
    Sampler,
    Temperature,
    TopK,
    TopP,
    softmax,
    suppress,
)

LOGITS = hnp.arrays(np.float32, st.integers(2, 40), elements=st.floats(-30, 30, width=32))
HISTORY = [1, 0, 1]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (TopK(1), TopKLogitsWarper(1)),
        (TopK(5), TopKLogitsWarper(5)),
        (TopK(1000), TopKLogitsWarper(1000)),
        (MinP(0.05), MinPLogitsWarper(0.05)),
        (MinP(1.0), MinPLogitsWarper(1.0)),
        (RepetitionPenalty(1.3), RepetitionPenaltyLogitsProcessor(1.3)),
        (RepetitionPenalty(0.7), RepetitionPenaltyLogitsProcessor(0.7)),
    ],
    ids=lambda value: type(value).__name__,
)
@settings(max_examples=25, deadline=None)
@given(logits=LOGITS)
def test_filters_agree_with_transformers(
    ours: LogitFilter, theirs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], logits: FloatArray
) -> None:
    before = logits.copy()
    filtered = ours.apply(logits, HISTORY)
    expected = theirs(torch.tensor([HISTORY]), torch.tensor(logits)[None])[0].numpy()
    np.testing.assert_allclose(filtered, expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, before)  # nothing is changed in place


@settings(max_examples=25, deadline=None)
@given(logits=LOGITS, temperature=st.floats(0.05, 20))
def test_temperature_agrees_with_transformers(logits: FloatArray, temperature: float) -> None:
    expected = TemperatureLogitsWarper(temperature)(torch.tensor([[0]]), torch.tensor(logits)[None])[0]
    ours = Temperature(temperature).apply(logits, [])
    np.testing.assert_allclose(softmax(ours), torch.softmax(expected.double(), -1).numpy(), rtol=1e-3, atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(logits=LOGITS, p=st.floats(0, 1))
def test_top_p_is_the_references_rule(logits: FloatArray, p: float) -> None:
    exponentials = [np.exp(float(value) - float(max(logits))) for value in logits]
    probabilities = [value / sum(exponentials) for value in exponentials]
    ranked = sorted(range(len(logits)), key=lambda token: -probabilities[token])
    before, kept, doubtful = 0.0, set(), set()
    for token in ranked:  # dropped where the sum of all likelier tokens exceeds p
        if abs(before - p) < 1e-9:
            doubtful.add(token)
        elif before <= p:
            kept.add(token)
        before += probabilities[token]
    survivors = set(np.flatnonzero(TopP(p).apply(logits, []) > -np.inf))
    assert kept <= survivors <= kept | doubtful
    assert ranked[0] in survivors


def test_a_tiny_temperature_neither_overflows_nor_changes_the_choice() -> None:
    logits = np.array([30000, 30001, -30000], np.float32)
    sampler = Sampler(GenerateOptions(temperature=1e-9, seed=0))
    assert {sampler.pick(logits, []) for _ in range(20)} == {1}


def test_drawn_frequencies_are_the_distribution() -> None:
    logits = np.array([1.0, -np.inf, 0.0, 2.0, -1.0, 0.5], np.float32)
    options = GenerateOptions(temperature=0.7, top_k=4, top_p=0.95, min_p=0.03, seed=5)
    weights = np.exp(np.array([1.0, 0.0, 2.0, 0.5]) / 0.7)  # -1 is cut by top_k
    by_size = weights[[2, 0, 3, 1]] / weights.sum()
    kept = np.cumsum(by_size) - by_size <= 0.95
    expected = np.zeros(6)
    expected[[3, 0, 5, 2]] = by_size * kept / (by_size * kept).sum()
    sampler, n = Sampler(options), 8_000
    counts = np.bincount([sampler.pick(logits, []) for _ in range(n)], minlength=6)
    assert (counts[expected == 0] == 0).all()
    chosen = expected > 0
    chi_square = ((counts - n * expected)[chosen] ** 2 / (n * expected[chosen])).sum()
    assert chi_square < 16.3  # 99.9 % of the distribution with 3 degrees of freedom


@settings(max_examples=25, deadline=None)
@given(logits=LOGITS, seed=st.integers(0, 2**32))
def test_the_same_seed_draws_the_same(logits: FloatArray, seed: int) -> None:
    options = GenerateOptions(temperature=1.5, top_p=0.9, seed=seed)
    first, second = Sampler(options), Sampler(options)
    assert [first.pick(logits, []) for _ in range(8)] == [second.pick(logits, []) for _ in range(8)]


def test_other_seeds_and_no_seed_draw_other_tokens() -> None:
    logits = np.zeros(1000, np.float32)
    options = [GenerateOptions(temperature=1, seed=seed) for seed in (1, 2, None, None)]
    drawn = {tuple(sampler.pick(logits, []) for _ in range(8)) for sampler in map(Sampler, options)}
    assert len(drawn) == 4


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_ends_of_the_random_range_pick_allowed_tokens(draw: float) -> None:
    class Fixed(np.random.Generator):
        def random(self, *args: object, **kwargs: object) -> float:  # type: ignore[override]
            return draw

    # The probability of token 0 underflows to nothing.
    logits = np.array([-9999, 0, -np.inf, 0.3, 0.1, -np.inf], np.float32)
    picked = Multinomial().pick(logits, Fixed(np.random.PCG64(0)))
    assert picked == (1 if draw == 0 else 4)


def test_greedy_is_the_default_and_takes_the_first_of_equals() -> None:
    logits = np.array([0, 3, 3, 1], np.float32)
    assert Sampler(GenerateOptions()).pick(logits, []) == 1
    assert Greedy().pick(suppress(logits, [1]), np.random.default_rng(0)) == 2
    assert logits[1] == 3


def test_the_repetition_penalty_acts_on_greedy_decoding() -> None:
    logits = np.array([0, 3, 2.9, 1], np.float32)
    sampler = Sampler(GenerateOptions(repetition_penalty=1.5))
    assert sampler.pick(logits, []) == 1
    assert sampler.pick(logits, [1]) == 2
    assert sampler.pick(logits, [1, 2, 1]) == 1
