"""Changes to a graph that passes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir


def lazy_tensor(
    name: str, read: Callable[[], npt.NDArray[Any]], dtype: ir.DataType, shape: Sequence[int]
) -> ir.LazyTensor:
    """A tensor whose array `read` makes each time it is asked for, and nobody keeps."""
    return ir.LazyTensor(
        lambda: ir.Tensor(read(), dtype=dtype, name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )


def initializer(
    graph: ir.Graph, name: str, read: Callable[[], npt.NDArray[Any]], dtype: ir.DataType, shape: Sequence[int]
) -> ir.Value:
    """The graph's initializer of that name, made on first use from a `lazy_tensor`."""
    if name not in graph.initializers:
        tensor = lazy_tensor(name, read, dtype, shape)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        graph.initializers.add(value)
    return graph.initializers[name]


def linear_inputs(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """What an `edgevlm::Linear` reads: x, the matrix and, where it has one, the bias."""
    x, matrix, bias = (*node.inputs, None)[:3]
    assert x is not None and matrix is not None
    return x, matrix, bias


def become(
    node: ir.Node, domain: str, op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, int]
) -> None:
    """Change what a node does, in place: its outputs keep their names, which may be the graph's."""
    node.domain, node.op_type, node.version = domain, op_type, None
    node.attributes.clear()
    for name, number in attributes.items():
        node.attributes[name] = ir.AttrInt64(name, number)
    node.resize_inputs(len(inputs))
    for i, value in enumerate(inputs):
        node.replace_input_with(i, value)
