"""Weights stored in float16 and computed in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest

from edgevlm_export.passes import halve_weights
from edgevlm_runtime.errors import CheckpointError

Floats = npt.NDArray[np.float32]


def product(matrix: Floats, bias: Floats) -> ir.Model:
    """x @ matrix + bias, the matrix read a second time by a transposed product."""
    x = ir.Value(name="x", shape=ir.Shape(("rows", 64)), type=ir.TensorType(ir.DataType.FLOAT))
    weights = []
    for name, array in (("matrix", matrix), ("bias", bias)):
        value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        weights.append(value)
    multiplied = ir.node("MatMul", [x, weights[0]])
    added = ir.node("Add", [multiplied.outputs[0], weights[1]])
    again = ir.node("Gemm", [added.outputs[0], weights[0]], {"transB": 1})
    again.outputs[0].name = "y"
    nodes = [multiplied, added, again]
    graph = ir.Graph([x], again.outputs, nodes=nodes, initializers=weights, opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def draw(*shape: int) -> Floats:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_results_are_those_of_rounded_weights(tmp_path: Path) -> None:
    matrix, bias, x = draw(64, 96), draw(96), draw(5, 64)
    ir.save(halve_weights.run(product(matrix, bias)), tmp_path / "half.onnx", external_data="half.data")
    session = onnxruntime.InferenceSession(tmp_path / "half.onnx", providers=["CPUExecutionProvider"])
    rounded = matrix.astype(np.float16).astype(np.float32)
    assert not np.array_equal(rounded, matrix)
    np.testing.assert_allclose(session.run(None, {"x": x})[0], (x @ rounded + bias) @ rounded.T, rtol=2e-5, atol=1e-3)


def test_only_large_weights_are_halved_and_once() -> None:
    graph = halve_weights.run(product(draw(64, 96), draw(96))).graph
    assert {name: value.dtype for name, value in graph.initializers.items()} == {
        "matrix.half": ir.DataType.FLOAT16,
        "bias": ir.DataType.FLOAT,
    }
    assert [node.op_type for node in graph] == ["Cast", "MatMul", "Add", "Gemm"]


def test_what_float16_can_not_hold_is_named(tmp_path: Path) -> None:
    matrix = draw(64, 96)
    matrix[3, 5] = 1e6
    model = halve_weights.run(product(matrix, draw(96)))
    with pytest.raises(CheckpointError, match=r"tensor matrix: .*float16"):
        ir.save(model, tmp_path / "half.onnx", external_data="half.data", size_threshold_bytes=0)
