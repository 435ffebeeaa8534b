"""Matrices in 4 bits against plain NumPy: their codes, their products in the engine, and what GPTQ is good for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from edgevlm_export import emit, int4, pipeline, round_int4
from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.families.family import Recipe
from edgevlm_export.int4 import Int4Matrix, fit_grid, quantize_int4
from edgevlm_export.modules.layers import DOMAIN
from edgevlm_export.passes import lower_linear
from edgevlm_export.weights import Weights
from edgevlm_runtime.engines import open_engine
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import Role

Array = npt.NDArray[Any]
SHAPES = [((9, 64), 64), ((5, 269), 64), ((7, 192), 64), ((6, 30), 32), ((4, 384), 128)]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def quantize(weight: Tensor, x: Tensor) -> Int4Matrix:
    return quantize_int4(weight, x)


def restore_slowly(matrix: Int4Matrix, n_inputs: int) -> Array:
    """Weight by weight, as MatMulNBits is documented."""
    n_outputs, _, half = matrix.packed.shape
    weights = np.zeros((n_outputs, n_inputs), np.float32)
    for row in range(n_outputs):
        for column in range(n_inputs):
            block, inner = divmod(column, 2 * half)
            code = int(matrix.packed[row, block, inner // 2]) >> 4 * (inner % 2) & 15
            zero = int(matrix.zeros[row, block // 2]) >> 4 * (block % 2) & 15
            weights[row, column] = matrix.scales[row, block] * np.float32(code - zero)
    return weights


def round_plainly(weight: Tensor, size: int) -> Array:
    """To the nearest of 16 values between each block's least and largest weight."""
    rounded = weight.numpy().copy()
    for row in rounded:
        for start in range(0, len(row), size):
            block = row[start : start + size]
            low, high = min(block.min(), 0), max(block.max(), 0)
            scale = (high - low) / 15
            zero = np.rint(-low / scale)
            block[:] = (np.clip(np.rint(block / scale) + zero, 0, 15) - zero) * scale
    return rounded


def product_error(rounded: Array | Tensor, weight: Tensor, x: Tensor) -> float:
    """Of x @ weight.T, relative to its size."""
    wrong = x @ (torch.as_tensor(rounded) - weight).T
    return float(wrong.norm() / (x @ weight.T).norm())


def test_channels_beyond_the_widest_are_rounded_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = draw(7, 576, seed=1), draw(700, 576) @ draw(576, 576, seed=2)
    together = quantize(weight, x).restore(576)
    monkeypatch.setattr(int4, "_WIDEST", 192)
    apart = quantize(weight, x).restore(576)
    expected = [
        quantize(weight[:, part], x[:, part]).restore(192) for part in map(slice, (0, 192, 384), (192, 384, 576))
    ]
    np.testing.assert_array_equal(apart.numpy(), torch.cat(expected, dim=1).numpy())
    errors = [product_error(each, weight, x) for each in (together, apart, round_plainly(weight, 64))]
    assert errors == sorted(errors) and errors[1] < 0.9 * errors[2]


@pytest.mark.parametrize(("shape", "size"), SHAPES)
def test_codes_are_as_the_engine_reads_them(shape: tuple[int, int], size: int, tmp_path: Path) -> None:
    n_outputs, n_inputs = shape
    weight, bias = draw(*shape, seed=1), draw(n_outputs, seed=2)
    matrix = quantize(weight, draw(200, n_inputs))
    expected = restore_slowly(matrix, n_inputs)
    assert matrix.packed.shape == (n_outputs, -(-n_inputs // size), size // 2) and matrix.packed.dtype == np.uint8
    np.testing.assert_array_equal(matrix.restore(n_inputs).numpy(), expected)
    # Each input is one channel, which the engine's own rounding of inputs leaves exact.
    found = multiply(weight, bias, matrix, tmp_path, np.eye(n_inputs, dtype=np.float32))
    np.testing.assert_allclose(found, expected.T + bias.numpy(), rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(expected - weight.numpy()) < 0.2 * np.linalg.norm(weight)


def multiply(weight: Tensor, bias: Tensor, matrix: Int4Matrix, folder: Path, x: Array) -> Array:
    """A graph of one Linear, lowered, written and run."""
    n_outputs, n_inputs = weight.shape
    weights = Weights({"w": LazyWeight(origin="w", shape=(n_outputs, n_inputs), read=lambda: weight)})
    float_type = ir.TensorType(ir.DataType.FLOAT)
    values = [
        ir.Value(name=name, type=float_type, shape=ir.Shape(shape))
        for name, shape in (("x", ("n", n_inputs)), ("w", weight.shape), ("b", (n_outputs,)), ("y", ("n", n_outputs)))
    ]
    values[2].const_value = ir.tensor(bias.numpy(), name="b")
    node = ir.Node(DOMAIN, "Linear", values[:3], outputs=values[3:])
    graph = ir.Graph(
        values[:1], values[3:], nodes=[node], initializers=values[1:3], opset_imports={"": 20, DOMAIN: 1}, name="g"
    )
    model = lower_linear.run(ir.Model(graph, ir_version=10), weights, lambda _: "int4", {"w": matrix})
    role: Role = "decoder"
    file = emit.emit_graph(model, role, folder)
    return open_engine(threads=1).open(folder / file).run({"x": x})["y"]


def test_gptq_keeps_products_where_channels_go_together() -> None:
    """Few sources behind many channels, as in every trained model; judged on inputs that it was not fitted to."""
    mixing, weight = draw(24, 256, seed=1), draw(64, 256, seed=2)
    x, unseen = (draw(600, 24, seed=seed) @ mixing + 0.3 * draw(600, 256, seed=seed + 1) for seed in (3, 5))
    plain = product_error(round_plainly(weight, 128), weight, unseen)
    assert 0.05 < plain < 0.2
    assert product_error(quantize(weight, x).restore(256), weight, unseen) < 0.5 * plain


def test_gptq_costs_little_where_channels_do_not() -> None:
    weight, x, unseen = draw(64, 256, seed=2), draw(2000, 256, seed=3), draw(2000, 256, seed=4)
    plain = product_error(round_plainly(weight, 128), weight, unseen)
    assert product_error(quantize(weight, x).restore(256), weight, unseen) < 1.05 * plain


def test_a_strong_channel_is_made_up_for() -> None:
    """Its products are right although its weights are as coarse as others."""
    weight, x = draw(64, 128, seed=1), draw(500, 128)
    x[:, :64] += 3 * x[:, 64:65]
    rounded = quantize(weight, x).restore(128)
    strong = (rounded - weight) @ torch.cat((torch.full((64,), 3.0), torch.zeros(64)))
    plainly = (torch.from_numpy(round_plainly(weight, 128)) - weight) @ torch.cat(
        (torch.full((64,), 3.0), torch.zeros(64))
    )
    assert strong.norm() < 0.3 * plainly.norm()


@pytest.mark.parametrize("x", [torch.zeros(20, 64), draw(20, 64) * torch.arange(64).remainder(2)])
def test_channels_that_were_silent_keep_their_weights(x: Tensor) -> None:
    weight = draw(8, 64, seed=1)
    assert (quantize(weight, x).restore(64) - weight).norm() < 0.15 * weight.norm()


def test_a_grid_holds_zero_and_the_extremes() -> None:
    block = draw(32, 6)
    block[:, 1] = 0
    block[:, 2] = block[:, 2].abs() + 1
    block[:, 3] = -block[:, 3].abs() - 1
    block[0, 4] = 1e3
    scale, zero = fit_grid(block)
    assert torch.equal(zero, zero.round()) and zero.min() >= 0 and zero.max() <= 15
    restored = ((block / scale).round().add(zero).clamp(0, 15) - zero) * scale
    assert not restored[:, 1].any()
    # Half a step, and as much for the extreme that the rounded zero point moves out of reach.
    assert ((restored - block).abs() <= scale * 1.001).all()
    assert ((restored - block).abs() <= scale * 0.501).float().mean() > 0.95


def test_every_matrix_is_rounded_after_those_before_it(recipe: Recipe, tmp_path: Path) -> None:
    outliers = {"text.blocks.0.attn.qkv.weight": (3, 60)}
    rounded: list[None] = []
    matrices = round_int4.round_matrices(recipe, outliers, tmp_path, lambda: rounded.append(None))
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert set(matrices) == {f"text.blocks.{layer}.{part}.weight" for layer in range(2) for part in parts}
    assert len(rounded) == len(matrices) and round_int4.int4_names(recipe) == set(matrices)
    for name, matrix in matrices.items():
        weight = recipe.weights[name]
        error = matrix.restore(weight.shape[1]) - weight
        channels = list(outliers.get(name, ()))
        assert torch.equal(error[:, channels], -weight[:, channels])  # these stay in float32
        error[:, channels] = 0
        assert 0.01 < float(error.norm() / weight.norm()) < 0.2


def test_inputs_that_are_not_finite_are_told(recipe: Recipe, tmp_path: Path) -> None:
    x = torch.full((1, 3, 64), torch.nan)
    rounder = round_int4._Rounder(recipe.weights, {}, tmp_path, lambda: None)
    with pytest.raises(CheckpointError, match=r"text.blocks.0.mlp.fc1.weight: .*finite"):
        rounder._see("text.blocks.0.mlp.fc1.weight", torch.nn.Identity(), (x,))


@pytest.mark.usefixtures("quick")
def test_a_bundle_has_4_bits_where_bytes_count(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    request = pipeline.ExportRequest(
        name="t", family="moondream2", source=tiny, out=out, precision="int4", kv_cache="float32"
    )
    manifest = pipeline.export(request).manifest
    assert list(tmp_path.iterdir()) == [out]
    assert {role: spec.precision for role, spec in manifest.graphs.items()} == {
        role: "int4" if role == "decoder" else "int8" for role in manifest.graphs
    }
    assert bits(out, "decoder") == {4: 8, 8: 1}  # two layers, and the head
    assert set(bits(out, "vision")) == {8}
    table = np.load(out / emit.EMBEDDING)
    assert table.dtype.itemsize == 64 + 4 and table.shape == (512,)


def bits(folder: Path, role: str) -> Counter[int]:
    """How many matrices of a graph have so many bits."""
    graph = onnx.load(folder / f"{role}.onnx", load_external_data=False).graph
    attributes = [{a.name: a.i for a in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"]
    assert all(found["accuracy_level"] == 4 for found in attributes)
    return Counter(found["bits"] for found in attributes)
