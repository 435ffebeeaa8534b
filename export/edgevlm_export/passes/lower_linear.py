"""Replace each `edgevlm::Linear` by operators that engines know, in the precision of its matrix.

    fp32    MatMul with the transposed matrix, Add
    fp16    the same, the matrix stored in float16 and cast: half the file, computed in float32
    int8    MatMulNBits on blocks of up to 128 weights; the engine quantizes each row of the input by blocks too, so
            that an outlier spoils only its block and batch items do not disturb each other
    int4    the same on blocks that were rounded before, see `edgevlm_export.int4`

A new precision is one more function in `_LOWER`; int4 needs its rounded matrices beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import onnx_ir as ir
import torch

from edgevlm_export.int4 import NO_MATRICES, Int4Matrices
from edgevlm_export.modules.layers import DOMAIN
from edgevlm_export.passes.edits import become, initializer, linear_inputs
from edgevlm_export.quantize import Policy, block_scales, blocks_of, quantize_blocks, read_transposed
from edgevlm_export.weights import Weights
from edgevlm_runtime.manifest import Precision

_ACCURACY_LEVEL = 4  # the engine multiplies in int8
_MICROSOFT = "com.microsoft"

_Lower: TypeAlias = Callable[[ir.Graph, ir.Node, Weights], None]


def run(model: ir.Model, weights: Weights, policy: Policy, matrices: Int4Matrices = NO_MATRICES) -> ir.Model:
    """Lower every Linear in place; matrices are read when the graph is written."""
    lower: dict[Precision, _Lower] = {**_LOWER, "int4": partial(_lower_int4, matrices=matrices)}
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        matrix = node.inputs[1]
        assert matrix is not None and matrix.name is not None
        lower[policy(matrix.name)](model.graph, node, weights)
        if not matrix.uses():
            del model.graph.initializers[matrix.name]
    model.opset_imports.pop(DOMAIN, None)
    if any(node.domain == _MICROSOFT for node in model.graph):
        model.opset_imports[_MICROSOFT] = 1
    return model


def _lower_fp32(graph: ir.Graph, node: ir.Node, weights: Weights) -> None:
    name, shape = _matrix(node, weights)
    read = partial(read_transposed, weights, name, torch.float32)
    _multiply_add(graph, node, initializer(graph, f"{name}.transposed", read, ir.DataType.FLOAT, shape[::-1]))


def _lower_fp16(graph: ir.Graph, node: ir.Node, weights: Weights) -> None:
    name, shape = _matrix(node, weights)
    read = partial(read_transposed, weights, name, torch.float16)
    half = initializer(graph, f"{name}.half", read, ir.DataType.FLOAT16, shape[::-1])
    cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
    graph.insert_before(node, cast)
    _multiply_add(graph, node, cast.outputs[0])


def _multiply_add(graph: ir.Graph, node: ir.Node, matrix: ir.Value) -> None:
    """Turn the node into a product with the matrix (in, out), and the addition of its bias where it has one."""
    x, _, bias = linear_inputs(node)
    if bias is None:
        become(node, "", "MatMul", [x, matrix], {})
        return
    product = ir.node("MatMul", [x, matrix])
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    graph.insert_before(node, product)
    become(node, "", "Add", [product.outputs[0], bias], {})


def _lower_int8(graph: ir.Graph, node: ir.Node, weights: Weights) -> None:
    name, (n_outputs, n_inputs) = _matrix(node, weights)
    blocks, block_size = blocks_of(n_inputs)
    quantized = initializer(
        graph,
        f"{name}.quantized",
        partial(quantize_blocks, weights, name),
        ir.DataType.UINT8,
        (n_outputs, blocks, block_size),
    )
    scales = initializer(
        graph, f"{name}.scales", partial(block_scales, weights, name), ir.DataType.FLOAT, (n_outputs * blocks,)
    )
    _multiply_blocks(
        node, (quantized, scales, None), {"K": n_inputs, "N": n_outputs, "bits": 8, "block_size": block_size}
    )


def _lower_int4(graph: ir.Graph, node: ir.Node, weights: Weights, *, matrices: Int4Matrices) -> None:
    name, (n_outputs, n_inputs) = _matrix(node, weights)
    matrix = matrices[name]
    quantized = initializer(
        graph, f"{name}.quantized", lambda: matrices[name].packed, ir.DataType.UINT8, matrix.packed.shape
    )
    scales = initializer(
        graph, f"{name}.scales", lambda: matrices[name].scales.ravel(), ir.DataType.FLOAT, (matrix.scales.size,)
    )
    zeros = initializer(
        graph, f"{name}.zeros", lambda: matrices[name].zeros.ravel(), ir.DataType.UINT8, (matrix.zeros.size,)
    )
    sizes = {"K": n_inputs, "N": n_outputs, "bits": 4, "block_size": 2 * matrix.packed.shape[-1]}
    _multiply_blocks(node, (quantized, scales, zeros), sizes)


def _multiply_blocks(node: ir.Node, matrix: tuple[ir.Value, ir.Value, ir.Value | None], sizes: dict[str, int]) -> None:
    """Turn the node into a product with a matrix in blocks: its codes, scales and zero points."""
    x, _, bias = linear_inputs(node)
    become(
        node,
        _MICROSOFT,
        "MatMulNBits",
        [x, *matrix, None, bias],
        {**sizes, "accuracy_level": _ACCURACY_LEVEL},
    )


_LOWER: dict[Precision, _Lower] = {
    "fp32": _lower_fp32,
    "fp16": _lower_fp16,
    "int8": _lower_int8,
}


def _matrix(node: ir.Node, weights: Weights) -> tuple[str, tuple[int, int]]:
    """Name and (out, in) of a Linear's matrix."""
    value = node.inputs[1]
    assert value is not None and value.name is not None
    n_outputs, n_inputs = weights.shape(value.name)
    return value.name, (n_outputs, n_inputs)
