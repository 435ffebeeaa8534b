"""Step 3: a module to an ONNX graph.

Of large models the module is on the meta device: the graph's parameters are names and shapes until a pass gives them
values, so that tracing needs no memory for them. Image models are small enough to be traced with their weights.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgevlm_export.families.family import GraphRequest
from edgevlm_export.passes import name_axes, simplify, transpose_weights
from edgevlm_export.quiet import quiet
from edgevlm_export.weights import replace_parameters
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import TensorSpec

OPSET = 20  # the first with Gelu as one operator
_NOISY = ("torch.onnx", "onnxscript", "onnx_ir")


def trace(request: GraphRequest, module: nn.Module) -> ir.Model:
    """The graph of one role: inputs and outputs named as requested, parameters by their names in `module`.

    module is the family's own on the meta device; its parameters are replaced, so that it serves one trace only.

    Raises:
        ExportError: torch can not export the module.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        graph = request.build(module).eval()
        replace_parameters(graph, lambda name, parameter: torch.empty(parameter.shape))
        model = _export(graph, request.inputs, request.outputs, request.example)
    _forget_values(model, {name for name, _ in graph.named_parameters()})
    return model


def trace_loaded(
    module: nn.Module,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    sizes: Mapping[str, int],
    *,
    fold_batch_norms: bool = True,
) -> ir.Model:
    """The graph of a module with its weights, simplified: inputs and outputs as the specs, in their order.

    `sizes` gives each free axis a size to trace with, of at least 2. Batch norms behind their convolutions become part
    of these unless told otherwise.

    Raises:
        ExportError: torch can not export the module.
    """
    model = _export(module.eval().requires_grad_(False), inputs, outputs, sizes)
    variances = [] if fold_batch_norms else [name for name in model.graph.initializers if name.endswith("running_var")]
    model = simplify.run(model, untouched=variances)
    model = name_axes.run(model, inputs, outputs)
    return transpose_weights.run(model)


def _export(
    module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], sizes: Mapping[str, int]
) -> ir.Model:
    with quiet(*_NOISY):
        program = torch.onnx.export(
            module,
            tuple(_example(spec, sizes) for spec in inputs),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=_dynamic_shapes(inputs, module),
            input_names=[spec.name for spec in inputs],
            output_names=[spec.name for spec in outputs],
        )
    if program is None:
        raise ExportError(f"{type(module).__name__}: torch.onnx.export gave nothing")
    return program.model


def _example(spec: TensorSpec, sizes: Mapping[str, int]) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _dynamic_shapes(inputs: Sequence[TensorSpec], graph: nn.Module) -> tuple[object, ...]:
    """Free axes of each argument; those of a starred one are a tuple of their own."""
    free = [
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.shape) if isinstance(axis, str)} for spec in inputs
    ]
    parameters = inspect.signature(graph.forward).parameters.values()
    n_named = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    return tuple(free) if n_named == len(parameters) else (*free[:n_named], tuple(free[n_named:]))


def _forget_values(model: ir.Model, parameters: set[str]) -> None:
    """Drop the parameters' fake values; real constants, such as rotary tables, stay."""
    for name in parameters & model.graph.initializers.keys():
        model.graph.initializers[name].const_value = None
