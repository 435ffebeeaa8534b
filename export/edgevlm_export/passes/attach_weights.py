"""Give each parameter that has no value yet its checkpoint tensor in float32, read when the graph is written."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from edgevlm_export.passes.edits import lazy_tensor
from edgevlm_export.quantize import read_float32
from edgevlm_export.weights import Weights


def run(model: ir.Model, weights: Weights) -> ir.Model:
    """Attach in place."""
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            read = partial(read_float32, weights, name)
            value.const_value = lazy_tensor(name, read, ir.DataType.FLOAT, weights.shape(name))
    return model
