"""Name matrices after the layer that they are of: torch's tracer calls them onnx::MatMul_123."""

from __future__ import annotations

import re

import onnx_ir as ir

_NAMELESS = re.compile(r"onnx::\w+_\d+")


def run(model: ir.Model) -> ir.Model:
    """Rename in place; a node's name has the path of its module, as in /encoder/layers.0/mlp/fc1/MatMul."""
    graph = model.graph
    for value in list(graph.initializers.values()):
        node = next((usage.node for usage in value.uses()), None)
        if node is None or node.name is None or not _NAMELESS.fullmatch(value.name or ""):
            continue
        module, _, operator = node.name.strip("/").rpartition("/")
        name = f"{module.replace('/', '.')}.{operator}.matrix" if module else f"{operator}.matrix"
        if name not in graph.initializers:
            value.name = name
    return model
