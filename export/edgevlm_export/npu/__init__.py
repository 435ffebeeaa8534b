"""Graphs of fixed shapes for NPUs: compiled here, without the chip, and checked where they can be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir

from edgevlm_export.npu.compiled import CompiledGraph
from edgevlm_export.npu.targets import TARGETS, NpuTarget, find_target
from edgevlm_runtime.engines import Array
from edgevlm_runtime.engines.choice import INSTALL
from edgevlm_runtime.engines.signature import one_line
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import Role

__all__ = ["TARGETS", "CompiledGraph", "NpuTarget", "compile_graph", "find_target"]


def compile_graph(
    target: NpuTarget, model: ir.Model, calibration: Sequence[Mapping[str, Array]], folder: Path, role: Role
) -> CompiledGraph:
    """Compile a graph whose axes are all fixed, the first to 1, and write it into the folder beside what it is from.

    `calibration` are inputs that tell the ranges of activations; they matter where the target computes in integers:
    there the model must be in float32, for others it may be quantized already.

    Raises:
        ExportError: the compiler is not installed, or refuses operators of the graph.
    """
    try:
        if target.htp_arch is not None:
            from edgevlm_export.npu import hexagon

            return hexagon.compile_graph(model, calibration, folder, role, target.htp_arch)
        from edgevlm_export.npu import intel

        return intel.compile_graph(model, folder, role)
    except ImportError as error:
        raise ExportError(f"--npu {target.name}: {one_line(error)}: {INSTALL[target.engine]}") from error
