"""OpenVINO IR of a graph, which OpenVINO opens faster than ONNX and keeps mapped from the disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm_runtime.engines.choice import INSTALL
from edgevlm_runtime.engines.signature import one_line
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import Precision

_EXACT = {"KV_CACHE_PRECISION": "f32"}
# Activations are quantized in groups: those of the weights' blocks are as exact as smaller ones, and faster.
_QUANTIZED = {"KV_CACHE_PRECISION": "u8", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
# Options that the plugin takes from the file, where who opens it gives none.
_OPTIONS: Mapping[Precision, Mapping[str, str]] = {
    "fp32": _EXACT,
    "fp16": _EXACT,
    "int8": _QUANTIZED,
    "int4": _QUANTIZED,
}


def write_ir(onnx_path: Path, out: Path, precision: Precision = "fp32") -> None:
    """Write an ONNX file, in float32 or quantized, as `out` (.xml) with its weights beside it (.bin), unrounded.

    A decoder becomes one that keeps its cache itself, in 8 bits where `precision` is int8 or int4, else in float32.

    Raises:
        ExportError: OpenVINO is not installed, or does not know an operator.
        OSError: the disk is full or can not be written.
    """
    openvino = _openvino()
    from edgevlm_export.openvino_rules import Converter
    from edgevlm_runtime.engines.openvino import FAILURES

    converter = Converter()
    try:
        model = converter.convert(onnx_path)
    except FAILURES as error:
        raise ExportError(f"{onnx_path}: {version()} can not read it: {one_line(error)}") from error
    for name, value in _OPTIONS[precision].items():
        model.set_rt_info(value, ["runtime_options", name])
    openvino.save_model(model, out, compress_to_fp16=False)


def emit_ir(file: str, folder: Path, precision: Precision = "fp32") -> str:
    """`write_ir` of a bundle's ONNX file beside it; the name of the new one."""
    path = (folder / file).with_suffix(".xml")
    write_ir(folder / file, path, precision)
    return path.name


def free_shapes(path: Path) -> list[str]:
    """The operators of an .xml or .onnx file that give shapes which are only known when it runs.

    Raises:
        ExportError: OpenVINO is not installed, or can not read the file.
    """
    return [
        f"{node.get_friendly_name()} ({node.get_type_name()})"
        for node in _read(path).get_ordered_ops()
        if any(output.partial_shape.is_dynamic for output in node.outputs())
    ]


def version() -> str:
    """The name and version of the compiler."""
    return f"openvino {str(_openvino().__version__).partition('-')[0]}"


def _openvino() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise ExportError(f"OpenVINO can not be loaded ({one_line(error)}): {INSTALL['openvino']}") from error
    return openvino


def _read(path: Path) -> Any:
    core = _openvino().Core()
    from edgevlm_runtime.engines.openvino import FAILURES, read_model

    try:
        return read_model(core, path)
    except FAILURES as error:
        raise ExportError(f"{path}: {version()} can not read it: {one_line(error)}") from error
