"""Store large float32 weights as float16 and cast them back: half the file, computed in float32 as before."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgevlm_export.passes.edits import initializer
from edgevlm_runtime.errors import CheckpointError

_SMALL = 1024  # values: biases and norms keep float32


def run(model: ir.Model) -> ir.Model:
    """Halve in place; arrays are read when the graph is written.

    Raises:
        CheckpointError: as the graph is written, where a weight is too large for float16.
    """
    graph = model.graph
    first = next(iter(graph))
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALL or value.is_graph_output():
            continue
        half = initializer(
            graph, f"{value.name}.half", partial(_read_half, tensor), ir.DataType.FLOAT16, tensor.shape.numpy()
        )
        cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT})
        cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
        graph.insert_before(first, cast)
        value.replace_all_uses_with(cast.outputs[0])
        assert value.name is not None
        del graph.initializers[value.name]
    return model


def _read_half(tensor: ir.TensorProtocol) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = tensor.numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise CheckpointError(f"tensor {tensor.name}: has values that are not finite in float16; export fp32 or int8")
    return half
