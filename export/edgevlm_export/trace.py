"""Step 3: a module on the meta device to an ONNX graph without weights.

The graph's parameters are names and shapes until a pass gives them values, so that tracing needs no memory for them.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from edgevlm_export.families.family import GraphRequest
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
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
        graph = request.build(module).eval()
        replace_parameters(graph, lambda name, parameter: torch.empty(parameter.shape))
        program = torch.onnx.export(
            graph,
            tuple(_example(spec, request.example) for spec in request.inputs),
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=_dynamic_shapes(request, graph),
            input_names=[spec.name for spec in request.inputs],
            output_names=[spec.name for spec in request.outputs],
        )
    if program is None:
        raise ExportError(f"graph {request.role}: torch.onnx.export gave nothing")
    _forget_values(program.model, {name for name, _ in graph.named_parameters()})
    return program.model


def _example(spec: TensorSpec, sizes: dict[str, int]) -> Tensor:
    shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape]
    return torch.empty(shape, dtype=getattr(torch, spec.dtype))


def _dynamic_shapes(request: GraphRequest, graph: nn.Module) -> tuple[object, ...]:
    """Free axes of each argument; those of a starred one are a tuple of their own."""
    free = [
        {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
        for spec in request.inputs
    ]
    parameters = inspect.signature(graph.forward).parameters.values()
    n_named = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters)
    return tuple(free) if n_named == len(parameters) else (*free[:n_named], tuple(free[n_named:]))


def _forget_values(model: ir.Model, parameters: set[str]) -> None:
    """Drop the parameters' fake values; real constants, such as rotary tables, stay."""
    for name in parameters & model.graph.initializers.keys():
        model.graph.initializers[name].const_value = None


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter reports missing torchvision and its own deprecations; none of it is the user's concern."""
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    try:
        for name in _NOISY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
