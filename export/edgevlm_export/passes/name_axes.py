"""Give free axes the names of the request instead of torch's s0, s1, ..."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgevlm_runtime.manifest import TensorSpec


def run(model: ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> ir.Model:
    """Rename in place; an axis that is no input's is left without a name."""
    graph = model.graph
    names: dict[str, str] = {}
    for value, spec in zip(graph.inputs, inputs, strict=True):
        for axis, name in zip(value.shape or (), spec.shape, strict=True):
            if isinstance(axis, ir.SymbolicDim) and axis.value is not None and isinstance(name, str):
                names.setdefault(axis.value, name)
    for node in graph:
        for value in node.outputs:
            _rename(value, names)
    for value, spec in zip((*graph.inputs, *graph.outputs), (*inputs, *outputs), strict=True):
        value.shape = ir.Shape(spec.shape)
    return model


def _rename(value: ir.Value, names: dict[str, str]) -> None:
    if value.shape is not None:
        value.shape = ir.Shape(
            [names.get(str(axis.value)) if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape]
        )
