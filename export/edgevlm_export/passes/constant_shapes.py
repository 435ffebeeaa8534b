"""Write shapes as numbers where they are known: exporters compute them anew in every run.

A Reshape to (Shape(y)[0], Shape(y)[1], -1, 64) becomes one to (0, 50, -1, 64) where y has 50 rows and the first axis
of what is reshaped is as long as that of y; 0 stands for "as it is".
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass
from onnxscript.optimizer import fold_constants, remove_unused_nodes

_MAX_ELEMENTS = 1 << 18  # of a constant that takes the place of the nodes that compute it
_FOLDED = ("ConstantOfShape", "Expand")  # which the optimizer leaves alone by default
_AS_IT_IS = 0
_WHAT_IS_LEFT = -1

_Length: TypeAlias = int | ir.SymbolicDim | None
"""How long an axis is: a number, a name that other axes of the same length have too, or unknown."""


def run(model: ir.Model) -> ir.Model:
    """Fold, in place, what computes shapes, and what is expanded to a shape that is known."""
    fold_constants(model, output_size_limit=_MAX_ELEMENTS, should_fold=lambda node: node.op_type in _FOLDED or None)
    ShapeInferencePass(data_prop=True)(model)
    for node in model.graph:
        if node.op_type == "Reshape" and node.domain == "":
            _write_shape(model.graph, node)
    remove_unused_nodes(model)
    _forget_names(model.graph)
    return model


def _write_shape(graph: ir.Graph, node: ir.Node) -> None:
    """Replace the shape of a Reshape by numbers, where each of its lengths is one or is the input's own."""
    x, shape = node.inputs
    lengths = None if shape is None or shape.const_value is not None else _lengths(shape)
    if x is None or x.shape is None or lengths is None:
        return
    numbers = [_number(length, x.shape, axis) for axis, length in enumerate(lengths)]
    known = [number for number in numbers if number is not None]
    if len(known) == len(numbers) - 1 and _WHAT_IS_LEFT not in known:
        numbers = [_WHAT_IS_LEFT if number is None else number for number in numbers]
    elif len(known) < len(numbers):
        return
    name = f"{node.outputs[0].name}.shape"
    tensor = ir.Tensor(np.array(numbers, np.int64), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
    graph.initializers.add(value)
    node.replace_input_with(1, value)


def _number(length: _Length, shape: ir.Shape, axis: int) -> int | None:
    """What a Reshape takes for a length, None where it is not known beforehand."""
    if isinstance(length, int):
        return length
    own = shape[axis] if axis < len(shape) else None
    same = isinstance(own, ir.SymbolicDim) and length is not None and length.value is not None and own == length
    return _AS_IT_IS if same else None


def _lengths(value: ir.Value | None) -> list[_Length] | None:
    """The numbers in a one-dimensional value, or the only one in a scalar; None where it is not made of shapes."""
    if value is None:
        return None
    if value.const_value is not None:
        return [int(number) for number in value.const_value.numpy().reshape(-1)]
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Shape":
        return _of_shape(node)
    if node.op_type == "Concat":
        parts = [_lengths(part) for part in node.inputs]
        return None if None in parts else [length for part in parts for length in part or ()]
    if node.op_type in ("Gather", "Slice"):
        return _part(node)
    return _lengths(node.inputs[0]) if node.op_type in ("Unsqueeze", "Squeeze") else None


def _of_shape(node: ir.Node) -> list[_Length] | None:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    lengths: list[_Length] = list(source.shape)
    return lengths[start:end]


def _part(node: ir.Node) -> list[_Length] | None:
    """Elements of a shape that a Gather or a Slice takes."""
    lengths, *where = (_lengths(value) for value in node.inputs)
    if lengths is None or any(part is None for part in where):
        return None
    numbers = [[number for number in part or () if isinstance(number, int)] for part in where]
    if node.op_type == "Gather":
        return [lengths[index] for index in numbers[0]]
    start, end, step = numbers[0][0], numbers[1][0], numbers[3][0] if len(numbers) > 3 else 1
    return lengths[start:end:step]


def _forget_names(graph: ir.Graph) -> None:
    """Shape inference names each axis that it knows nothing of, unk__0 and so on."""
    for node in graph:
        for value in node.outputs:
            if value.shape is not None and not value.is_graph_output():
                axes = [axis if isinstance(axis, int) else None for axis in value.shape]
                value.shape = ir.Shape(axes)
