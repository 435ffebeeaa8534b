"""Intel's NPUs: OpenVINO IR of fixed shapes, which the NPU's driver compiles where it is run."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edgevlm_export import openvino_ir
from edgevlm_export.emit import emit_graph
from edgevlm_export.npu.compiled import CompiledGraph
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import Role


def compile_graph(model: ir.Model, folder: Path, role: Role) -> CompiledGraph:
    """See `npu.compile_graph`.

    Raises:
        ExportError: a shape in the graph is not fixed, which the NPU needs.
    """
    file = emit_graph(model, role, folder)
    out = (folder / file).with_suffix(".xml")
    openvino_ir.write_ir(folder / file, out)
    if free := openvino_ir.free_shapes(out):
        more = f" and {len(free) - 3} more" if len(free) > 3 else ""
        raise ExportError(f"{role}: the NPU needs fixed shapes, and these are not: {', '.join(free[:3])}{more}")
    return CompiledGraph(file=file, compiled={"openvino": out.name}, compiler=openvino_ir.version())
