"""Transpose, once and for all, weights that the graph would transpose in every run: torch's Linear are (out, in)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def run(model: ir.Model) -> ir.Model:
    """Replace, in place, each Transpose of an initializer by an initializer."""
    graph = model.graph
    for node in [node for node in graph if node.op_type == "Transpose" and node.domain == ""]:
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.name is None or source.const_value is None or result.is_graph_output():
            continue
        order = node.attributes.get_ints("perm", None)
        array = np.ascontiguousarray(np.transpose(source.const_value.numpy(), order))
        # One weight may be transposed for several nodes, so that its own name is not enough.
        name = f"{source.name}.{result.name}"
        weight = ir.Value(name=name, type=result.type, shape=ir.Shape(array.shape), const_value=ir.Tensor(array))
        graph.initializers.add(weight)
        result.replace_all_uses_with(weight)
        graph.remove(node, safe=True)
        if not source.uses() and source.is_initializer():
            graph.initializers.pop(source.name, None)
    return model
