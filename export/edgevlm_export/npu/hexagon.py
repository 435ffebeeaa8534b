"""Qualcomm's Hexagon NPUs: float32 graph -> quantized graph -> the chip's binary, by onnxruntime-qnn's compiler.

Activations have 16 bits, weights 8: of convolutions with one scale for each output channel, of matrices with one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx_ir as ir
from onnx_ir.external_data import load_to_model
from onnxruntime import quantization as ort_quantization
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config, qnn_preprocess_model

from edgevlm_export.emit import emit_graph
from edgevlm_export.npu.compiled import CompiledGraph
from edgevlm_export.quiet import quiet
from edgevlm_runtime.engines import Array, qnn
from edgevlm_runtime.engines.onnxruntime import FAILURES
from edgevlm_runtime.engines.signature import one_line
from edgevlm_runtime.engines.threads import physical_cores
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import Role

_FLOATS = {"DequantizeLinear", "QuantizeLinear"}  # an operator that is refused takes these with it
_MOST_NAMED = 3


def compile_graph(
    model: ir.Model, calibration: Sequence[Mapping[str, Array]], folder: Path, role: Role, htp_arch: int
) -> CompiledGraph:
    """See `npu.compile_graph`; `htp_arch` is the version of the Hexagon."""
    file = emit_graph(quantize(model, calibration), role, folder)
    context = folder / f"{role}{qnn.COMPILED_SUFFIX}"
    _compile(folder / file, context, htp_arch)
    _check_arch(context, htp_arch)
    return CompiledGraph(file=file, compiled={"qnn": context.name}, compiler=f"onnxruntime-qnn {qnn.VERSION}")


def quantize(model: ir.Model, calibration: Sequence[Mapping[str, Array]]) -> ir.Model:
    """The float32 model with QuantizeLinear and DequantizeLinear where the compiler looks for them.

    Each activation's range is the widest that it has on the calibration inputs.
    """
    with TemporaryDirectory(prefix="edgevlm-") as scratch, quiet(""):  # it advises to prepare graphs as they are
        given, fused, quantized = (Path(scratch) / f"{name}.onnx" for name in ("given", "fused", "quantized"))
        ir.save(model, given, external_data=f"{given.name}.data")
        if qnn_preprocess_model(given, fused, save_as_external_data=True):
            given = fused
        config = get_qnn_qdq_config(
            given,
            _Inputs(calibration),
            activation_type=QuantType.QUInt16,
            weight_type=QuantType.QUInt8,
            init_overrides=_one_scale_a_channel(model),
        )
        config.use_external_data_format = True
        ort_quantization.quantize(given, quantized, config)
        return load_to_model(ir.load(quantized))


class _Inputs(ort_quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Calibration inputs as ONNX Runtime's quantizer asks for them."""

    def __init__(self, inputs: Sequence[Mapping[str, Array]]) -> None:
        self._rest = iter(inputs)

    def get_next(self) -> dict[str, Array] | None:
        """The next input, None after the last."""
        following = next(self._rest, None)
        return None if following is None else dict(following)


def _one_scale_a_channel(model: ir.Model) -> dict[str, list[dict[str, Any]]]:
    """Overrides for the weights of convolutions: depthwise ones differ from channel to channel by far."""
    weights = {
        node.inputs[1].name
        for node in model.graph
        if node.op_type == "Conv" and node.inputs[1] is not None and node.inputs[1].is_initializer()
    }
    return {name: [{"axis": 0, "quant_type": QuantType.QInt8, "symmetric": True}] for name in weights if name}


def _compile(graph: Path, context: Path, htp_arch: int) -> None:
    """Write the binary of a quantized graph, and `context`, an ONNX file that names it.

    Raises:
        ExportError: the compiler refuses operators or gives up.
    """
    entries = {"ep.context_enable": "1", "ep.context_embed_mode": "0", "ep.context_file_path": str(context)}
    try:
        qnn.open_session(graph, entries, threads=physical_cores(), htp_arch=htp_arch)
    except FAILURES as error:
        if refused := _refused(graph, htp_arch):
            raise ExportError(f"{graph.stem}: hexagon-v{htp_arch} can not run {refused}") from error
        raise ExportError(
            f"{graph.stem}: onnxruntime-qnn {qnn.VERSION} can not compile it for hexagon-v{htp_arch}: {one_line(error)}"
        ) from error


def _refused(graph: Path, htp_arch: int) -> str:
    """The operators that would stay on the CPU, with the names of some: none when it failed for another reason."""
    entries = {"session.record_ep_graph_assignment_info": "1"}
    try:
        session = qnn.open_session(graph, entries, threads=physical_cores(), htp_arch=htp_arch, fallback=True)
    except FAILURES:
        return ""
    nodes = [
        node
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
        if node.op_type not in _FLOATS
    ]
    counts = Counter(node.op_type for node in nodes)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    names = ", ".join(node.name for node in nodes[:_MOST_NAMED])
    return f"{kinds} ({names}{', ...' if len(nodes) > _MOST_NAMED else ''})" if nodes else ""


def _check_arch(context: Path, htp_arch: int) -> None:
    """The compiler takes any version, and makes a binary for an old one of those that it does not know.

    Raises:
        ExportError: the binary is not for the version asked for.
    """
    binaries = [path.read_bytes() for path in context.parent.glob(f"{context.stem}_*.bin")]
    if not binaries or not all(f";arch={htp_arch};".encode() in binary for binary in binaries):
        raise ExportError(
            f"{context.name}: onnxruntime-qnn {qnn.VERSION} does not know hexagon-v{htp_arch}; "
            "a newer one may: pip install --upgrade onnxruntime-qnn"
        )
