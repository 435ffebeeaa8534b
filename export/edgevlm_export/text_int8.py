"""Text towers to int8 in their weights alone: activations of text have outliers that static ranges would have to hold.

Products with a matrix of weights become MatMulNBits, whose blocks are those of `edgevlm_export.quantize`; the table of
token embeddings, most of such a tower, becomes int8 with a scale for each token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.modules.layers import DOMAIN
from edgevlm_export.passes import lower_linear
from edgevlm_export.passes.edits import become, initializer
from edgevlm_export.weights import Weights
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import CheckpointError

_LARGEST = 127
_TABLE_ROWS = 1024  # a table with fewer is of positions: small, and read by every token


def quantize_text(model: ir.Model) -> ir.Model:
    """Quantize, in place, a float32 graph that has its weights; they are read again when it is written.

    Raises:
        CheckpointError: weights are not finite; of matrices, as the graph is written.
    """
    matrices: dict[str, LazyWeight] = {}
    for node in list(model.graph):
        if node.domain == "" and node.op_type in _HANDLERS:
            _HANDLERS[node.op_type](model.graph, node, matrices)
    _drop_unused(model.graph)
    return lower_linear.run(model, Weights(matrices), lambda _: "int8")


def _lower_matmul(graph: ir.Graph, node: ir.Node, matrices: dict[str, LazyWeight]) -> None:
    x, matrix = node.inputs
    if matrix is not None and _is_weight(matrix, n_axes=2):
        _become_linear(graph, node, [x, matrix, None], matrices, transposed=False)


def _lower_gemm(graph: ir.Graph, node: ir.Node, matrices: dict[str, LazyWeight]) -> None:
    x, matrix, *bias = node.inputs
    plain = (
        node.attributes.get_float("alpha", 1.0) == node.attributes.get_float("beta", 1.0) == 1.0
        and not node.attributes.get_int("transA", 0)
        and all(value is None or (value.shape is not None and len(value.shape) == 1) for value in bias)
    )
    if plain and matrix is not None and _is_weight(matrix, n_axes=2):
        transposed = bool(node.attributes.get_int("transB", 0))
        _become_linear(graph, node, [x, matrix, *(bias or [None])], matrices, transposed=transposed)


def _become_linear(
    graph: ir.Graph,
    node: ir.Node,
    inputs: list[ir.Value | None],
    matrices: dict[str, LazyWeight],
    *,
    transposed: bool,
) -> None:
    """Make a node `edgevlm::Linear`, whose matrix is (out, in): transposed says that this one is."""
    matrix = inputs[1]
    assert matrix is not None and matrix.const_value is not None and matrix.name is not None
    name = f"{matrix.name}.linear"
    stored = LazyWeight(
        origin=matrix.name,
        shape=tuple(matrix.const_value.shape.numpy()),
        read=partial(_read_torch, matrix.const_value),
    )
    matrices[name] = stored if transposed else stored.transposed()
    value = initializer(graph, name, _unread, ir.DataType.FLOAT, matrices[name].shape)
    become(node, DOMAIN, "Linear", [inputs[0], value, inputs[2]], {})


def _quantize_table(graph: ir.Graph, node: ir.Node, _: dict[str, LazyWeight]) -> None:
    """Gather rows of int8 and their scales, and multiply."""
    table, ids = node.inputs
    if table is None or not _is_weight(table, n_axes=2) or node.attributes.get_int("axis", 0) != 0:
        return
    assert table.const_value is not None
    n_rows, dim = table.const_value.shape.numpy()
    if n_rows < _TABLE_ROWS:
        return
    array = table.const_value.numpy()
    scales = _row_scales(array, table.name)
    rows = initializer(
        graph, f"{table.name}.rows", partial(_round_rows, array, scales), ir.DataType.INT8, (n_rows, dim)
    )
    scale = initializer(graph, f"{table.name}.scales", lambda: scales, ir.DataType.FLOAT, (n_rows, 1))
    gathered, factors = ir.node("Gather", [rows, ids], {"axis": 0}), ir.node("Gather", [scale, ids], {"axis": 0})
    cast = ir.node("Cast", [gathered.outputs[0]], {"to": ir.DataType.FLOAT})
    graph.insert_before(node, [gathered, factors, cast])
    become(node, "", "Mul", [cast.outputs[0], factors.outputs[0]], {})


def _row_scales(table: FloatArray, name: str | None) -> FloatArray:
    """Each row's largest magnitude over 127, (rows, 1); 1 where the row is 0."""
    scales = np.abs(table).max(axis=1, keepdims=True) / np.float32(_LARGEST)
    if not np.isfinite(scales).all():
        raise CheckpointError(f"tensor {name}: has values that are not finite; is the file damaged?")
    scales[scales == 0] = 1
    return np.asarray(scales, np.float32)


def _round_rows(table: FloatArray, scales: FloatArray) -> npt.NDArray[np.int8]:
    return np.asarray(np.rint(table / scales), np.int8)


def _is_weight(value: ir.Value, n_axes: int) -> bool:
    tensor = value.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == n_axes


def _read_torch(tensor: ir.TensorProtocol) -> Tensor:
    return torch.from_numpy(np.array(tensor.numpy()))


def _unread() -> npt.NDArray[Any]:
    raise AssertionError("lower_linear replaces it before it is read")


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


_HANDLERS: dict[str, Callable[[ir.Graph, ir.Node, dict[str, LazyWeight]], None]] = {
    "MatMul": _lower_matmul,
    "Gemm": _lower_gemm,
    "Gather": _quantize_table,
}
