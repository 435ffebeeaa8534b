"""A decoder whose cache is float16 or int8: run by the engine, against plain NumPy in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from torch import Tensor

from edgevlm_export import calibrate, emit
from edgevlm_export.families.family import Recipe
from edgevlm_export.passes import lower_cache, run_passes
from edgevlm_export.passes.scale_cache import MARGIN, rotated_peaks
from edgevlm_export.quantize import Calibration, policy_of
from edgevlm_runtime.decoder import Decoder
from edgevlm_runtime.engines import Array, FloatArray, open_engine
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.kv_cache import KVCache
from edgevlm_runtime.manifest import CacheType
from tests.export.conftest import Trace
from tests.oracles.moondream2_numpy import Oracle, Sizes

N_PREFIX = 26
IDS = (5, 300, 17, 44, 301, 302, 80)
# One rounding is 5e-4 of a value in float16, and half a step of 2 * MARGIN / 255 of the largest in int8.
TOLERANCES: dict[CacheType, float] = {"float32": 1e-5, "float16": 2e-3, "int8": 3e-2}


@pytest.fixture(scope="module")
def seen(recipe: Recipe) -> Calibration:
    return calibrate.observe(recipe)


def lower(recipe: Recipe, trace_once: Trace, seen: Calibration, cache_type: CacheType, folder: Path) -> Path:
    """The decoder's graph, with weights in float32."""
    request = next(graph for graph in recipe.graphs if graph.role == "decoder")
    model = trace_once(request, recipe.build())
    model = run_passes(model, request, recipe.weights, policy_of(request, "fp32"), seen, cache_type=cache_type)
    path = folder / emit.emit_graph(model, "decoder", folder)
    ir.save(lower_cache.run(ir.load(path), cache_type), path)
    return path


def open_decoder(path: Path, recipe: Recipe, cache_type: CacheType) -> Decoder:
    assert recipe.parts.cache is not None and recipe.embedding is not None
    table = recipe.weights[recipe.embedding].numpy()
    return Decoder(open_engine(threads=1).open(path), table, replace(recipe.parts.cache, dtype=cache_type))


@pytest.fixture(scope="module", params=TOLERANCES)
def cache_type(request: pytest.FixtureRequest) -> CacheType:
    chosen: CacheType = request.param
    return chosen


@pytest.fixture(scope="module")
def path(
    recipe: Recipe,
    trace_once: Trace,
    seen: Calibration,
    cache_type: CacheType,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return lower(recipe, trace_once, seen, cache_type, tmp_path_factory.mktemp(cache_type))


def read_prefix(decoder: Decoder) -> KVCache:
    cache = decoder.new_cache()
    decoder.run(prefix(), cache, bidirectional=True)
    return cache


def prefix() -> FloatArray:
    return np.random.default_rng(0).standard_normal((N_PREFIX, 64)).astype(np.float32)


def test_a_sequence_in_pieces_is_what_the_oracle_says(
    path: Path, recipe: Recipe, cache_type: CacheType, tensors: dict[str, Tensor]
) -> None:
    oracle = Oracle(
        Sizes(heads=2, kv_heads=1, vision_heads=2, patch=14, crop=70, margin=1),
        {name: tensor.float().numpy() for name, tensor in tensors.items()},
    )
    decoder = open_decoder(path, recipe, cache_type)
    cache = read_prefix(decoder)
    steps = [decoder.run(decoder.embed(ids), cache) for ids in (IDS[:5], IDS[5:6], IDS[6:])]
    hidden = oracle.hidden(np.concatenate([prefix(), oracle.embed(list(IDS))]).astype(np.float32), N_PREFIX)[-3:]
    logits = oracle.logits(hidden)
    error = np.abs(np.stack([step.logits for step in steps]) - logits).max() / np.abs(logits).max()
    assert error < TOLERANCES[cache_type]
    if cache_type != "float32":
        assert error > TOLERANCES["float32"], "it really is another type"


def test_int8_keeps_codes_of_what_float32_keeps(
    recipe: Recipe, trace_once: Trace, seen: Calibration, tmp_path: Path
) -> None:
    """In the first layer, whose keys and values are the same: rotated, to half a step, and none clipped; those of the
    first tokens, which the graph rounds, and those of later ones, which attention does."""
    kept: dict[CacheType, list[Array]] = {}
    for cache_type in ("float32", "int8"):
        (tmp_path / cache_type).mkdir()
        found = lower(recipe, trace_once, seen, cache_type, tmp_path / cache_type)
        decoder = open_decoder(found, recipe, cache_type)
        cache = read_prefix(decoder)
        decoder.run(decoder.embed(IDS), cache)
        kept[cache_type] = cache.blocks(N_PREFIX + len(IDS))[:2]
    scales = {
        tensor.name: onnx.numpy_helper.to_array(tensor, str(found.parent))
        for tensor in onnx.load(found).graph.initializer
        if tensor.name.endswith(".scales")
    }
    for part, exact, codes in zip(("key", "value"), kept["float32"], kept["int8"], strict=True):
        scale = scales[f"past_key_values.0.{part}.scales"][0, 0]
        assert codes.dtype == np.int8 and codes.nbytes * 4 == exact.nbytes
        assert 20 < np.abs(codes).max() < 127
        assert (np.abs(codes * scale - exact) <= 0.5001 * scale).all()


def test_rotated_keys_stay_within_their_peaks() -> None:
    rng = np.random.default_rng(1)
    peaks = rng.uniform(0.1, 5, (3, 16)).astype(np.float32)
    found = rotated_peaks(peaks, 4)
    keys = rng.uniform(-1, 1, (5000, 3, 16)) * peaks
    angles = rng.uniform(0, 2 * np.pi, (5000, 1, 4))
    first, second = keys[..., :4].copy(), keys[..., 4:8].copy()
    keys[..., :4] = first * np.cos(angles) - second * np.sin(angles)
    keys[..., 4:8] = first * np.sin(angles) + second * np.cos(angles)
    assert (np.abs(keys) <= found).all()
    assert (np.abs(keys).max(axis=0) > 0.8 * found).all()
    np.testing.assert_array_equal(found[:, 8:], peaks[:, 8:])


def test_scales_reach_beyond_the_peaks_and_are_never_zero(
    recipe: Recipe, trace_once: Trace, seen: Calibration, tmp_path: Path
) -> None:
    name = "text.blocks.1.attn.qkv.weight"
    peaks = seen.peaks[name].copy()
    peaks[-32:] = [0.0, *range(1, 32)]
    path = lower(recipe, trace_once, Calibration(peaks={**seen.peaks, name: peaks}), "int8", tmp_path)
    (scales,) = (
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(path).graph.initializer
        if tensor.name == "past_key_values.1.value.scales"
    )
    np.testing.assert_allclose(scales[0, 0, 0] * 127, MARGIN * np.array([31.0, *range(1, 32)]), rtol=1e-6)


def test_int8_without_calibration_is_refused(recipe: Recipe, trace_once: Trace, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"text.blocks.0.attn.qkv.weight: calibration has not seen .* --kv-cache"):
        lower(recipe, trace_once, Calibration(), "int8", tmp_path)
