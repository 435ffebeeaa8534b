"""Step 3 for models of the transformers package: optimum's ONNX exporter, then names and axes as the spec has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
from onnx_ir.external_data import load_to_model
from torch import nn

from edgevlm_export.passes import constant_shapes, name_weights, simplify
from edgevlm_export.quiet import quiet
from edgevlm_export.torchvision_operators import declare_missing_operators
from edgevlm_export.trace import OPSET
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import TensorSpec

NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "optimum", "transformers")


@dataclass(frozen=True, kw_only=True)
class OptimumExporter:
    """An entry of optimum's table of exporters, and what transformers calls the inputs and outputs of the specs."""

    library: str
    model_type: str
    task: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def trace_optimum(
    module: nn.Module,
    exporter: OptimumExporter,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    sizes: Mapping[str, int],
    *,
    fixed: bool,
) -> ir.Model:
    """The graph of a transformers module with its weights, inputs and outputs named as the specs.

    `sizes` are those of free axes, by name: what to trace with, or with `fixed` what they become.

    Raises:
        ExportError: optimum or torch can not export the module.
    """
    with quiet(*NOISY), TemporaryDirectory(prefix="edgevlm-") as folder:
        file = Path(folder) / "graph.onnx"
        _export(module, exporter, inputs, outputs, sizes, file=file, fixed=fixed)
        model = load_to_model(ir.load(file))
    specs = (*inputs, *outputs)
    for value, spec in zip((*model.graph.inputs, *model.graph.outputs), specs, strict=True):
        value.name = spec.name
        value.shape = ir.Shape([sizes.get(str(axis), axis) if fixed else axis for axis in spec.shape])
    return name_weights.run(constant_shapes.run(simplify.run(model)))


def _export(
    module: nn.Module,
    exporter: OptimumExporter,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    sizes: Mapping[str, int],
    *,
    file: Path,
    fixed: bool,
) -> None:
    declare_missing_operators()
    from optimum.exporters.onnx import export, model_configs  # noqa: F401  (the latter fills the table)
    from optimum.exporters.tasks import TasksManager

    known = TasksManager.get_exporter_config_constructor(
        "onnx", task=exporter.task, model_type=exporter.model_type, library_name=exporter.library
    )
    axes = {
        "inputs": dict(zip(exporter.inputs, map(_free_axes, inputs), strict=True)),
        "outputs": dict(zip(exporter.outputs, map(_free_axes, outputs), strict=True)),
    }
    # optimum's own class for the model, but for the outputs wanted and the names of axes.
    config_class = type(known.func.__name__, (known.func,), {name: property(_always(of)) for name, of in axes.items()})
    try:
        export(
            model=module,
            config=config_class(module.config, task=exporter.task),
            output=file,
            opset=OPSET,
            input_shapes=_dummy_sizes(inputs[0], sizes),
            disable_dynamic_axes_fix=True,
            no_dynamic_axes=fixed,
        )
    except (RuntimeError, ValueError, TypeError) as error:
        line = str(error).strip().split("\n")[0][:200]
        raise ExportError(f"{exporter.model_type}: optimum can not export it ({line})") from error


def _always(value: dict[str, dict[int, str]]) -> Any:
    return lambda _: value


def _free_axes(spec: TensorSpec) -> dict[int, str]:
    return {i: axis for i, axis in enumerate(spec.shape) if isinstance(axis, str)}


def _dummy_sizes(spec: TensorSpec, sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes by optimum's names; those of an image are in the module's config."""
    first, second = (axis if isinstance(axis, int) else sizes[axis] for axis in spec.shape[:2])
    return {"batch_size": first} | ({"sequence_length": second} if len(spec.shape) == 2 else {})
