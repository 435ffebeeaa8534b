"""Keep outlier channels out of int8 and int4: they are multiplied in float32, with their own columns of the matrix.

    Linear(x, W, b)  ->  Linear(x * kept, W, b) + Gather(x, channels) @ W[:, channels].T

`kept` is 0 at the channels and 1 elsewhere, so that the result is the same, but neither does an outlier coarsen the
block that it is in, nor is the rounding of its weights multiplied by it. Matrices without outliers stay as they are.
"""

from __future__ import annotations

from functools import partial
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from edgevlm_export.modules.layers import DOMAIN
from edgevlm_export.passes.edits import become, initializer, linear_inputs
from edgevlm_export.quantize import Outliers, Policy, read_columns
from edgevlm_export.weights import Weights

_Split: TypeAlias = tuple[ir.Value, ir.Value]
"""An input without its outlier channels, and these alone."""


def run(model: ir.Model, weights: Weights, policy: Policy, outliers: Outliers) -> ir.Model:
    """Split, in place, every Linear in int8 or int4 whose matrix has outlier channels."""
    splits: dict[tuple[ir.Value, tuple[int, ...]], _Split] = {}
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        x, matrix, bias = linear_inputs(node)
        assert matrix.name is not None
        channels = outliers.get(matrix.name, ())
        if not channels or policy(matrix.name) not in ("int8", "int4"):
            continue
        if (x, channels) not in splits:
            # Matrices that read the same values have the same outliers: one split serves all.
            splits[x, channels] = _split(model.graph, node, channels, weights.shape(matrix.name)[1])
        kept, few = splits[x, channels]
        shape = (len(channels), weights.shape(matrix.name)[0])
        read = partial(read_columns, weights, matrix.name, channels)
        columns = initializer(model.graph, f"{matrix.name}.outlier_columns", read, ir.DataType.FLOAT, shape)
        exact = ir.node("MatMul", [few, columns])
        rest = ir.node("Linear", [kept, matrix, bias], domain=DOMAIN)
        for product in (exact, rest):
            product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
        model.graph.insert_before(node, [exact, rest])
        become(node, "", "Add", [rest.outputs[0], exact.outputs[0]], {})
    return model


def _split(graph: ir.Graph, node: ir.Node, channels: tuple[int, ...], n_inputs: int) -> _Split:
    """The input of a Linear, split before it; initializers are named after its matrix."""
    x, matrix = node.inputs[:2]
    assert x is not None and matrix is not None
    mask, indexes = np.ones(n_inputs, np.float32), np.array(channels, np.int64)
    mask[indexes] = 0
    kept = initializer(graph, f"{matrix.name}.kept_channels", lambda: mask, ir.DataType.FLOAT, mask.shape)
    few = initializer(graph, f"{matrix.name}.outlier_channels", lambda: indexes, ir.DataType.INT64, indexes.shape)
    nodes = ir.node("Mul", [x, kept]), ir.node("Gather", [x, few], {"axis": -1})
    nodes[0].outputs[0].type, nodes[0].outputs[0].shape = x.type, x.shape
    graph.insert_before(node, nodes)
    return nodes[0].outputs[0], nodes[1].outputs[0]
