"""A decoder whose cache is OpenVINO's state, beside the same one in ONNX Runtime: tokens, rollback, forks, failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgevlm_export import emit
from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import ReadOptions, Recipe
from edgevlm_export.openvino_ir import emit_ir
from edgevlm_export.passes import run_passes
from edgevlm_export.quantize import policy_of
from edgevlm_export.trace import trace
from edgevlm_runtime import state_cache
from edgevlm_runtime.decoder import Decoder
from edgevlm_runtime.engines import Array, FloatArray, StatefulGraph, open_engine
from edgevlm_runtime.errors import EngineError
from edgevlm_runtime.kv_cache import KVCache
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.state_cache import StateCache

N_IMAGE = 60
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
# A key or value of 8 bits is off by 1/512 of its head's range; the weights of an engine are the other's.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-4, "int8": 0.05}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("checkpoint")
    FAMILIES["moondream2"].shrink(folder)
    found = FAMILIES["moondream2"].read(open_checkpoint(folder), ReadOptions())
    assert isinstance(found, Recipe)
    return found


@pytest.fixture(scope="module")
def folders(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    """The decoder of each precision for both engines."""
    root = tmp_path_factory.mktemp("decoders")
    request = next(request for request in recipe.graphs if request.role == "decoder")
    model = trace(request, recipe.build())
    for precision in PRECISIONS:
        (root / precision).mkdir()
        lowered = run_passes(model.clone(), request, recipe.weights, policy_of(request, precision))
        emit_ir(emit.emit_graph(lowered, "decoder", root / precision), root / precision, precision)
    return {precision: root / precision for precision in PRECISIONS}


Open = Callable[[str, Precision], Decoder]


@pytest.fixture(scope="module")
def open_decoder(recipe: Recipe, folders: dict[Precision, Path]) -> Open:
    """A decoder of an engine and a precision."""
    spec = recipe.parts.cache
    assert spec is not None and recipe.embedding is not None
    table = recipe.weights.stored(recipe.embedding).float().numpy()

    def opened(engine: str, precision: Precision) -> Decoder:
        suffix = "xml" if engine == "openvino" else "onnx"
        return Decoder(open_engine(engine, 2).open(folders[precision] / f"decoder.{suffix}"), table, spec)

    return opened


def image_of(decoder: Decoder) -> FloatArray:
    return decoder.embed(np.random.default_rng(1).integers(5, 90, N_IMAGE).tolist())


def ask(decoder: Decoder, cache: KVCache, seed: int, n_tokens: int = 7, n_steps: int = 4) -> FloatArray:
    """Logits (steps, vocab) after a random question of some tokens and then after random single ones."""
    ids = np.random.default_rng(seed).integers(5, 90, n_tokens + n_steps).tolist()
    parts = [ids[:n_tokens], *([token] for token in ids[n_tokens:])]
    return np.stack([decoder.run(decoder.embed(part), cache).logits for part in parts])


def read(decoder: Decoder) -> StateCache:
    """A cache that holds the image."""
    cache = decoder.new_cache()
    assert isinstance(cache, StateCache)
    decoder.run(image_of(decoder), cache, bidirectional=True)
    return cache


def off(found: FloatArray, expected: FloatArray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_both_engines_say_the_same(open_decoder: Open, precision: Precision) -> None:
    decoder, other = open_decoder("openvino", precision), open_decoder("onnxruntime", precision)
    cache = other.new_cache()
    other.run(image_of(other), cache, bidirectional=True)
    found, expected = ask(decoder, read(decoder), 2), ask(other, cache, 2)
    assert off(found, expected) < TOLERANCE[precision]
    if precision == "fp32":
        assert found.argmax(axis=-1).tolist() == expected.argmax(axis=-1).tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_it_knows_whether_two_calls_are_as_one(open_decoder: Open, engine: str, precision: Precision) -> None:
    decoder = open_decoder(engine, precision)
    whole, parted = decoder.new_cache(), decoder.new_cache()
    decoder.run(image_of(decoder)[:20], parted)
    found = decoder.run(image_of(decoder)[20:], parted).logits
    assert (off(found, decoder.run(image_of(decoder), whole).logits) < 1e-5) == decoder.continues_exactly


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_is_forgotten_is_not_seen(
    open_decoder: Open, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_cache, "MAX_HIDDEN", 30)
    decoder = open_decoder("openvino", precision)
    cache = read(decoder)
    expected = [ask(decoder, read(decoder), seed) for seed in range(3)]
    kept = set()
    for seed in (0, 1, 2, 0, 1, 2, 0):
        assert off(ask(decoder, cache, seed), expected[seed]) < 1e-4, "after what other questions left"
        cache.rollback(N_IMAGE)
        kept.add(cache._n_kept)
    assert kept == {N_IMAGE, N_IMAGE + 11, N_IMAGE + 22}, "hidden at first, then trimmed"


def test_a_rollback_into_what_was_hidden_before(open_decoder: Open) -> None:
    """Used positions are then not next to each other in the state."""
    decoder = open_decoder("openvino", "fp32")
    cache, fresh = read(decoder), read(decoder)
    ask(decoder, cache, 1)
    cache.rollback(N_IMAGE)
    for each in (cache, fresh):
        ask(decoder, each, 2)
        each.rollback(N_IMAGE + 5)
    found, expected = ask(decoder, cache, 3), ask(decoder, fresh, 3)
    assert off(found, expected) < 1e-4
    cache._trim()
    cache.rollback(N_IMAGE + 9)
    fresh.rollback(N_IMAGE + 9)
    assert off(ask(decoder, cache, 4), ask(decoder, fresh, 4)) < 1e-4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_fork_goes_its_own_way(open_decoder: Open, precision: Precision) -> None:
    decoder = open_decoder("openvino", precision)
    cache = read(decoder)
    expected = ask(decoder, read(decoder), 5)
    ask(decoder, cache, 4)  # is being answered
    fork = cache.fork(N_IMAGE)
    assert fork.length == N_IMAGE and cache.length == N_IMAGE + 11
    assert off(ask(decoder, fork, 5), expected) < 1e-3
    cache.rollback(N_IMAGE)
    assert off(ask(decoder, cache, 5), expected) < 1e-3


@pytest.mark.parametrize("precision", PRECISIONS)
def test_blocks_fill_another_cache(open_decoder: Open, precision: Precision) -> None:
    decoder = open_decoder("openvino", precision)
    cache = read(decoder)
    expected = ask(decoder, cache, 6)
    other = decoder.new_cache()
    for mine, theirs in zip(cache.blocks(N_IMAGE), other.room(N_IMAGE), strict=True):
        assert mine.flags.c_contiguous and mine.shape == theirs.shape == (N_IMAGE, cache.spec.head_dim)
        theirs[:] = mine
    other.fill(N_IMAGE)
    assert off(ask(decoder, other, 6), expected) < 1e-3


def test_a_failed_run_leaves_the_cache_as_it_was(open_decoder: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = open_decoder("openvino", "fp32")
    cache = read(decoder)
    expected = ask(decoder, read(decoder), 7)
    run = cache._state.run

    def fail(inputs: dict[str, FloatArray]) -> dict[str, FloatArray]:
        run(inputs)
        raise EngineError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(cache._state, "run", fail)
        with pytest.raises(EngineError):
            ask(decoder, cache, 8)
    assert cache.length == cache._n_kept == N_IMAGE
    assert off(ask(decoder, cache, 7), expected) < 1e-4


def test_an_empty_cache(open_decoder: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = open_decoder("openvino", "int8")
    expected = ask(decoder, decoder.new_cache(), 9)
    monkeypatch.setattr(state_cache, "MAX_HIDDEN", 10)
    cache = decoder.new_cache()
    ask(decoder, cache, 8)
    cache.rollback(0)
    for empty in (cache, cache.fork(0)):
        assert off(ask(decoder, empty, 9), expected) < 1e-4


def test_the_state_has_the_precision_of_the_bundle(open_decoder: Open) -> None:
    layouts = set()
    for precision, itemsize in zip(PRECISIONS, (4, 1), strict=True):
        cache = open_decoder("openvino", precision).new_cache()
        spec = cache.spec
        assert cache.nbytes(10) == 10 * 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * itemsize
        layouts.add(cache.layout)
    assert len(layouts) == 2


def test_a_graph_without_a_state_starts_anew_each_time(folders: dict[Precision, Path], recipe: Recipe) -> None:
    graph = open_engine("openvino", 1).open(folders["fp32"] / "decoder.xml")
    assert isinstance(graph, StatefulGraph)
    request = next(request for request in recipe.graphs if request.role == "decoder")
    dim = request.inputs[0].shape[-1]
    assert isinstance(dim, int)
    inputs: dict[str, Array] = {
        "embeddings": np.ones((1, 2, dim), np.float32),
        "attention_bias": np.zeros((1, 1, 2, 2), np.float32),
        "seqlens_k": np.array([1], np.int32),
        "total_sequence_length": np.array(2, np.int32),
        "logit_positions": np.array([1], np.int64),
    }
    first, second = graph.run(inputs), graph.run(inputs)
    np.testing.assert_array_equal(first["logits"], second["logits"])
    with pytest.raises(EngineError, match="no such input beam_idx"):
        graph.run({**inputs, "beam_idx": np.zeros(1, np.int32)})
