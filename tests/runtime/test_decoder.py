"""Decoder and KV cache: whatever way a sequence is cut into calls, it is the sequence computed at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm_runtime.decoder import Decoder
from edgevlm_runtime.errors import ContextOverflow, DamagedBundle, EngineError
from edgevlm_runtime.kv_cache import BufferCache
from edgevlm_runtime.manifest import CacheType
from tests.runtime.fake_engine import CACHE, DIM, TinyDecoder

VOCAB = 50


def make_decoder() -> tuple[Decoder, TinyDecoder]:
    graph = TinyDecoder(VOCAB)
    return Decoder(graph, graph.table, CACHE), graph


def random_embeddings(n_tokens: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(n_tokens, DIM)).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    n_prefix=st.integers(0, 12), cuts=st.lists(st.integers(1, 6), min_size=1, max_size=6), seed=st.integers(0, 10**6)
)
def test_any_cut_of_a_sequence_equals_the_whole(n_prefix: int, cuts: list[int], seed: int) -> None:
    decoder, graph = make_decoder()
    embeddings = random_embeddings(n_prefix + sum(cuts), seed)
    logits, hidden = graph.full(embeddings, n_prefix)
    cache = decoder.new_cache()
    if n_prefix:
        step = decoder.run(embeddings[:n_prefix], cache, bidirectional=True)
        np.testing.assert_allclose(step.logits, logits[n_prefix - 1], rtol=0, atol=1e-4)
    for cut in cuts:
        start = cache.length
        step = decoder.run(embeddings[start : start + cut], cache)
        assert cache.length == start + cut
        np.testing.assert_allclose(step.logits, logits[cache.length - 1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(step.hidden[0], hidden[cache.length - 1], rtol=0, atol=1e-4)


def test_a_prefix_sees_what_a_causal_sequence_does_not() -> None:
    decoder, _ = make_decoder()
    embeddings = random_embeddings(5)
    changed = embeddings.copy()
    changed[4] += 1
    prefix, causal = [], []
    for rows in (embeddings, changed):
        cache = decoder.new_cache()
        decoder.run(rows, cache, bidirectional=True)
        prefix.append(cache.blocks(1)[-1][0].copy())
        cache = decoder.new_cache()
        decoder.run(rows, cache)
        causal.append(cache.blocks(1)[-1][0].copy())
    assert np.abs(prefix[0] - prefix[1]).max() > 1e-3
    np.testing.assert_array_equal(causal[0], causal[1])


def test_rollback_forgets_and_fork_copies() -> None:
    decoder, _ = make_decoder()
    image, question, other = (random_embeddings(n, seed) for n, seed in ((9, 1), (6, 2), (7, 3)))
    cache = decoder.new_cache()
    decoder.run(image, cache, bidirectional=True)
    first = decoder.run(question, cache)
    fork = cache.fork(9)
    cache.rollback(9)
    second = decoder.run(other, cache)
    np.testing.assert_array_equal(decoder.run(question, fork).logits, first.logits)
    cache.rollback(9)
    np.testing.assert_array_equal(decoder.run(question, cache).logits, first.logits)
    assert not np.allclose(first.logits, second.logits)
    assert not any(np.shares_memory(a, b) for a, b in zip(cache.blocks(9), fork.blocks(9), strict=True))


def test_a_fork_copies_only_what_is_asked_for() -> None:
    cache = BufferCache(CACHE)
    cache.advance(20)
    for buffer in cache.shared.buffers:
        buffer.array[:] = 1
    fork = cache.fork(8)
    assert fork.length == 8
    assert all(buffer.array[:, :, :8].all() and not buffer.array[:, :, 8:].any() for buffer in fork.shared.buffers)


@pytest.mark.parametrize(("dtype", "n_bytes"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_a_cache_is_as_small_as_its_type(dtype: CacheType, n_bytes: int) -> None:
    cache = BufferCache(replace(CACHE, dtype=dtype))
    assert cache.nbytes(10) == 10 * 2 * 2 * 8 * n_bytes
    assert cache.layout != BufferCache(replace(CACHE, dtype="int8" if dtype != "int8" else "float16")).layout
    for index, block in enumerate(cache.room(10)):
        block[:] = np.arange(80).reshape(10, 8) % 100 + index
    cache.fill(10)
    fork = cache.fork(6)
    assert fork.layout == cache.layout
    for mine, theirs in zip(cache.blocks(6), fork.blocks(6), strict=True):
        assert mine.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(mine, theirs)


def test_a_context_limits_positions_and_not_the_buffers() -> None:
    graph = TinyDecoder(VOCAB)
    decoder = Decoder(graph, graph.table, CACHE, 20)
    cache = decoder.new_cache()
    decoder.run(random_embeddings(18), cache)  # the graph checks the buffers' shape
    for each in (cache, cache.fork(18)):
        with pytest.raises(ContextOverflow, match="takes 3 tokens, but only 2 of the 20 positions of `context`"):
            decoder.run(random_embeddings(3), each)
        decoder.run(random_embeddings(2), each)
        assert each.left == 0


def test_overflow_is_refused_before_anything_runs() -> None:
    decoder, graph = make_decoder()
    cache = decoder.new_cache()
    decoder.run(random_embeddings(60), cache)
    before = [block.copy() for block in cache.blocks(64)]
    with pytest.raises(ContextOverflow, match="takes 5 tokens, but only 4 of the model's 64 positions"):
        decoder.run(random_embeddings(5), cache)
    assert graph.calls == [(0, 60)]
    assert cache.length == 60
    assert all(np.array_equal(a, b) for a, b in zip(before, cache.blocks(64), strict=True))
    decoder.run(random_embeddings(4), cache)
    assert cache.left == 0


def test_an_engine_that_fails_advances_nothing() -> None:
    decoder, graph = make_decoder()
    cache = decoder.new_cache()
    graph.fail_at = 3
    with pytest.raises(MemoryError):
        decoder.run(random_embeddings(4), cache)
    assert cache.length == 0


def test_values_that_are_not_finite_are_an_error() -> None:
    decoder, _ = make_decoder()
    with pytest.raises(EngineError, match="position 2 is not finite"):
        decoder.run(np.full((3, DIM), np.nan, np.float32), decoder.new_cache())


def test_embeddings_come_from_the_table_in_float32() -> None:
    graph = TinyDecoder(VOCAB)
    half = graph.table.astype(np.float16)
    embedded = Decoder(graph, half, CACHE).embed((3, 0, 3))
    assert embedded.dtype == np.float32
    np.testing.assert_array_equal(embedded, half[[3, 0, 3]].astype(np.float32))


@pytest.mark.parametrize("token", [VOCAB, -1])
def test_an_id_without_a_row_is_a_damaged_bundle(token: int) -> None:
    decoder, _ = make_decoder()
    with pytest.raises(DamagedBundle, match=f"token id {token} is not in the embedding table of 50 rows"):
        decoder.embed((1, token))
