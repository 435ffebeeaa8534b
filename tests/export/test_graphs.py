"""Traced and lowered graphs, run by ONNX Runtime, against plain NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from torch import Tensor

from edgevlm_export import emit
from edgevlm_export.families.family import GraphRequest, Recipe
from edgevlm_export.passes import run_passes
from edgevlm_export.quantize import policy_of
from edgevlm_runtime.engines import Array, Graph, Shared, SharedBuffers, open_engine
from edgevlm_runtime.manifest import GraphSpec, Precision
from tests.export.conftest import Trace
from tests.oracles.moondream2_numpy import Oracle, Sizes

N_PREFIX = 26
# Weights are stored in bfloat16, which float16 holds exactly; int8 rounds weights and activations.
TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "fp16": 1e-5, "int8": 0.06}


class Bundle:
    """The graphs of one precision on disk, and who opens them."""

    def __init__(self, folder: Path, specs: dict[str, GraphSpec], precision: Precision) -> None:
        self.folder = folder
        self.specs = specs
        self.precision = precision

    def open(self, role: str) -> Graph:
        return open_engine(threads=1).open(self.folder / self.specs[role].file)

    def run(self, role: str, values: Array) -> Array:
        """A graph with one input and one output."""
        spec = self.specs[role]
        return self.open(role).run({spec.inputs[0].name: values.astype(np.float32)})[spec.outputs[0].name]

    def holds(self, ours: Array, theirs: Array) -> bool:
        """Whether an array is the oracle's, as nearly as the precision allows."""
        assert ours.shape == theirs.shape and ours.dtype == np.float32
        return bool(np.abs(ours - theirs).max() <= TOLERANCE[self.precision] * np.abs(theirs).max())


def lower(recipe: Recipe, request: GraphRequest, trace_once: Trace, precision: Precision) -> ir.Model:
    model = trace_once(request, recipe.build())
    return run_passes(model, request, recipe.weights, policy_of(request, precision))


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def bundle(
    request: pytest.FixtureRequest, recipe: Recipe, trace_once: Trace, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    folder = tmp_path_factory.mktemp(request.param)
    specs: dict[str, GraphSpec] = {
        graph.role: GraphSpec(
            file=emit.emit_graph(lower(recipe, graph, trace_once, request.param), graph.role, folder),
            precision=request.param,
            inputs=graph.inputs,
            outputs=graph.outputs,
        )
        for graph in recipe.graphs
    }
    return Bundle(folder, specs, request.param)


@pytest.fixture(scope="module")
def oracle(tensors: dict[str, Tensor]) -> Oracle:
    sizes = Sizes(heads=2, kv_heads=1, vision_heads=2, patch=14, crop=70, margin=1)
    return Oracle(sizes, {name: tensor.float().numpy() for name, tensor in tensors.items()})


def draw(*shape: int, seed: int = 0) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape)


def test_images_become_tokens(bundle: Bundle, oracle: Oracle) -> None:
    crops = np.clip(draw(3, 3, 70, 70), -1, 1)
    assert bundle.holds(bundle.run("vision", crops), oracle.encode(crops.astype(np.float32)))
    features = draw(1, 25, 96)
    assert bundle.holds(bundle.run("project", features)[0], oracle.project(features[0].astype(np.float32)))


def test_a_crop_does_not_depend_on_its_neighbors(bundle: Bundle) -> None:
    crops = np.clip(draw(3, 3, 70, 70), -1, 1)
    crops[1] *= 1000  # one crop of outliers
    together = bundle.run("vision", crops)
    for i in range(3):
        np.testing.assert_allclose(together[i : i + 1], bundle.run("vision", crops[i : i + 1]), rtol=1e-4, atol=1e-5)


def test_places_go_in_and_out(bundle: Bundle, oracle: Oracle) -> None:
    fractions, hidden = np.random.default_rng(1).random((4, 2)).astype(np.float32), draw(4, 64).astype(np.float32)
    pairs: list[tuple[str, Callable[[Array], Array], Array]] = [
        ("region_coordinate_encoder", oracle.encode_coordinate, fractions[:, :1]),
        ("region_size_encoder", oracle.encode_size, fractions),
        ("region_coordinate_decoder", oracle.decode_coordinate, hidden),
        ("region_size_decoder", oracle.decode_size, hidden),
    ]
    for role, expected, values in pairs:
        assert bundle.holds(bundle.run(role, values), expected(values)), role


class Cached:
    """The decoder graph with a cache that it updates in place."""

    def __init__(self, bundle: Bundle) -> None:
        self.graph = bundle.open("decoder")
        specs = zip(bundle.specs["decoder"].inputs[5:], bundle.specs["decoder"].outputs[2:], strict=True)
        self.cache = SharedBuffers(
            tuple(
                Shared(input=given.name, output=made.name, array=np.zeros((1, 1, 256, 32), np.float32))
                for given, made in specs
            )
        )
        self.length = 0

    def run(self, embeddings: Array, *, bidirectional: bool = False, rows: list[int] | None = None) -> dict[str, Array]:
        """Logits (rows, vocab) and hidden states (rows, dim) of the next tokens, all of them unless told which."""
        n = len(embeddings)
        total = self.length + n
        bias = np.zeros((1, 1, n, total), np.float32)
        if not bidirectional:
            bias[0, 0, :, self.length :] += np.triu(np.full((n, n), -1e9), 1).astype(np.float32)
        self.length = total
        return self.graph.run(
            {
                "embeddings": embeddings[None].astype(np.float32),
                "attention_bias": bias,
                "seqlens_k": np.array([total - 1], np.int32),
                "total_sequence_length": np.array(total, np.int32),
                "logit_positions": np.array(range(n) if rows is None else rows, np.int64),
            },
            self.cache,
        )


def test_text_in_pieces_is_text_at_once(bundle: Bundle, oracle: Oracle) -> None:
    """The image's prefix, whose tokens see each other, then a prompt, then single tokens: as one pass of the oracle."""
    sequence = np.concatenate([draw(N_PREFIX, 64), oracle.embed([5, 300, 17, 44, 301, 302, 80])]).astype(np.float32)
    hidden = oracle.hidden(sequence, N_PREFIX)
    cached = Cached(bundle)
    parts = [cached.run(sequence[:N_PREFIX], bidirectional=True), cached.run(sequence[N_PREFIX:-2])]
    parts += [cached.run(sequence[-2:-1]), cached.run(sequence[-1:])]
    assert bundle.holds(np.concatenate([part["hidden"] for part in parts]), hidden)
    assert bundle.holds(np.concatenate([part["logits"] for part in parts]), oracle.logits(hidden))


def test_only_the_rows_asked_for_have_logits(bundle: Bundle) -> None:
    embeddings = draw(4, 64)
    everything, chosen = Cached(bundle).run(embeddings), Cached(bundle).run(embeddings, rows=[3, 1])
    for name in ("logits", "hidden"):
        np.testing.assert_allclose(chosen[name], everything[name][[3, 1]], rtol=1e-4, atol=1e-4)


def test_graphs_have_clean_operators_and_named_axes(bundle: Bundle) -> None:
    linear = {"fp32": {"MatMul", "Add"}, "fp16": {"MatMul", "Add", "Cast"}, "int8": {"MatMulNBits"}}
    allowed = linear[bundle.precision] | {"Add", "LayerNormalization", "Split", "Gelu", "Reshape", "Transpose"}
    allowed |= {"Gather", "MultiHeadAttention", "GroupQueryAttention", "Mul", "MatMul", "Cos", "Sin", "Concat"}
    for role, spec in bundle.specs.items():
        model = onnx.load(bundle.folder / spec.file, load_external_data=False)
        assert {node.op_type for node in model.graph.node} <= allowed, role
        assert "edgevlm" not in {node.domain for node in model.graph.node} | {o.domain for o in model.opset_import}
        for values, wanted in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
            assert [value.name for value in values] == [tensor.name for tensor in wanted]
            for value, tensor in zip(values, wanted, strict=True):
                axes = value.type.tensor_type.shape.dim
                assert tuple(axis.dim_param or axis.dim_value for axis in axes) == tensor.shape
    decoder = onnx.load(bundle.folder / "decoder.onnx", load_external_data=False).graph.node
    assert [node.op_type for node in decoder].count("GroupQueryAttention") == 2


def test_large_weights_start_at_pages(bundle: Bundle) -> None:
    for spec in bundle.specs.values():
        model = onnx.load(bundle.folder / spec.file, load_external_data=False)
        for tensor in model.graph.initializer:
            where = {entry.key: entry.value for entry in tensor.external_data}
            if int(where.get("length", 0)) > 4096:
                assert int(where["offset"]) % 4096 == 0
                assert where["location"] == f"{spec.file}.data"


def test_every_parameter_is_in_one_graph(recipe: Recipe, trace_once: Trace) -> None:
    """In float32 the graphs' initializers are the checkpoint, transposed where a matrix is multiplied."""
    written: dict[str, Array] = {}
    for request in recipe.graphs:
        for name, value in lower(recipe, request, trace_once, "fp32").graph.initializers.items():
            assert value.const_value is not None
            written[name] = value.const_value.numpy()
    assert recipe.embedding is not None
    for name in set(recipe.weights) - {recipe.embedding}:
        expected = recipe.weights[name].numpy()
        found = written[name] if name in written else written[f"{name}.transposed"].T
        np.testing.assert_array_equal(found, expected)


def test_a_family_can_keep_matrices_in_float32(recipe: Recipe, trace_once: Trace) -> None:
    request = replace(recipe.graphs[1], high_precision=frozenset({"vision.proj_mlp.fc2.weight"}))
    model = lower(recipe, request, trace_once, "int8")
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "Gelu", "MatMul", "Add"]
