"""OpenVINO, for encoders and for decoders that keep their cache themselves, tuned for the latency of one call."""

from __future__ import annotations

import mmap
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import openvino as ov
import openvino.properties as properties
import openvino.properties.hint as hints
from openvino import frontend

from edgevlm_runtime.engines import Array, FloatArray, Graph, SharedBuffers, State
from edgevlm_runtime.engines.signature import Port, Signature, one_line
from edgevlm_runtime.errors import EngineError

NPU = "NPU"
BEAM_IDX = "beam_idx"  # the input by which a graph with state would reorder a batch
_FORGET_EVERY_S = 0.02  # in which some 20 MB are packed
FAILURES = (
    *(frontend.GeneralFailure, frontend.InitializationFailure, frontend.NotImplementedFailure),
    *(frontend.OpConversionFailure, frontend.OpValidationFailure),
    *(RuntimeError, ValueError, TypeError, MemoryError),
)


class OpenVinoEngine:
    """Opens OpenVINO IR (.xml beside its .bin) and ONNX files. Each graph may use `threads` threads.

    `device` is one of OpenVINO's, "CPU" or "NPU"; graphs of free shapes, which the NPU can not run, stay on the CPU.
    """

    name = "openvino"

    def __init__(self, *, threads: int, device: str = "CPU") -> None:
        self.device = device
        self._core = ov.Core()
        self._latency = {hints.performance_mode: hints.PerformanceMode.LATENCY}
        # CPUs with bfloat16 would round what is in float32 to it.
        self._cpu = {properties.inference_num_threads: threads, hints.inference_precision: ov.Type.f32}

    def open(self, path: Path) -> Graph:
        """Open an .xml or .onnx file beside its weights.

        Raises:
            EngineError: not there, of another format, or with an operator that this OpenVINO does not have.
        """
        try:
            weights = _Weights(path)
            model = read_model(self._core, path, weights)
            device = "CPU" if model.is_dynamic() else self.device
            options = self._latency | (self._cpu if device == "CPU" else {})
            # Before it is compiled, which adds the names of operators that it leaves out.
            inputs = [port for port in _ports(model.inputs) if port.name != BEAM_IDX]
            signature = Signature(path, inputs, _ports(model.outputs))
            compiled = self._core.compile_model(model, device, options)
        except (*FAILURES, OSError) as error:
            raise EngineError(f"{path}: OpenVINO {_version()} can not open it: {one_line(error)}") from error
        graph = _StatefulGraph if model.get_variables() else _OpenVinoGraph
        return graph(compiled, signature, path, weights)


class _Weights:
    """The weights beside an .xml file, mapped; nothing of other files, and where there are none.

    The first run packs them into memory of its own. Their pages would stay, and count as the process's a second time.
    """

    def __init__(self, path: Path) -> None:
        self._pages: mmap.mmap | None = None
        self._packed = False
        bin_path = path.with_suffix(".bin")
        if path.suffix == ".xml" and hasattr(mmap, "MADV_DONTNEED") and bin_path.is_file() and bin_path.stat().st_size:
            with bin_path.open("rb") as file:
                # Nobody writes to them, but OpenVINO takes no memory that is read-only.
                self._pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self) -> ov.Tensor | None:
        """All of them, uint8 (bytes,), on the pages themselves: whoever uses it has to keep this object."""
        return None if self._pages is None else ov.Tensor(np.frombuffer(self._pages, np.uint8), shared_memory=True)

    @contextmanager
    def packing(self) -> Iterator[None]:
        """Let go of the pages while the first run reads them, and once it has."""
        if self._packed or self._pages is None:
            yield
            return
        self._packed = True
        done = threading.Event()
        forgetting = threading.Thread(target=self._forget_until, args=(done, self._pages), name="forget-weights")
        forgetting.start()
        try:
            yield
        finally:
            done.set()
            forgetting.join()

    @staticmethod
    def _forget_until(done: threading.Event, pages: mmap.mmap) -> None:
        ended = False
        while not ended:
            ended = done.wait(_FORGET_EVERY_S)
            pages.madvise(mmap.MADV_DONTNEED)  # what is read again comes back from the file


def read_model(core: ov.Core, path: Path, weights: _Weights | None = None) -> ov.Model:
    """The model in an .xml or .onnx file; that of an .xml file on `weights`, which have to live as long.

    Raises:
        Exception: any of `FAILURES`, as OpenVINO raises it.
    """
    if path.suffix != ".onnx":
        mapped = None if weights is None else weights.tensor()
        return core.read_model(path) if mapped is None else core.read_model(path.read_bytes(), mapped)
    # Core.read_model would try other formats as well, whose readers complain on stderr.
    reader = frontend.FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(path))


def has_npu() -> bool:
    """Whether OpenVINO finds an NPU, of Intel's, with its driver."""
    return NPU in ov.Core().available_devices


class _OpenVinoGraph:
    """A compiled model. A request serves one run at a time, so each run takes an idle one or makes its own."""

    constants: ClassVar[Mapping[str, Array]] = {}  # inputs that are always the same

    def __init__(self, compiled: ov.CompiledModel, signature: Signature, path: Path, weights: _Weights) -> None:
        self._compiled = compiled
        self._signature = signature
        self._path = path
        self._weights = weights
        self._idle: deque[ov.InferRequest] = deque()

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """See `Graph.run`; there are no shared buffers."""
        if shared is not None:
            raise EngineError(
                f"{self._path}: engine openvino can not update buffers in place ({shared.buffers[0].input}); export "
                "the model with --openvino, or open it with --engine onnxruntime"
            )
        request = self._request()
        outputs = self.infer(request, inputs)
        self._idle.append(request)
        return outputs

    def infer(self, request: ov.InferRequest, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one request; raises as `Graph.run`."""
        self._signature.check(inputs)
        contiguous = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        with self.failures(), self._weights.packing():
            results = request.infer({**contiguous, **self.constants}, share_inputs=True)
            return {name: results[i] for i, name in enumerate(self._signature.outputs)}

    def _request(self) -> ov.InferRequest:
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_request()

    def _new_request(self) -> ov.InferRequest:
        with self.failures():
            return self._compiled.create_infer_request()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Make EngineErrors of what OpenVINO raises."""
        try:
            yield
        except FAILURES as error:
            raise EngineError(f"{self._path}: OpenVINO failed: {one_line(error)}") from error


class _StatefulGraph(_OpenVinoGraph):
    """A compiled model with state, which belongs to a request. There is one beam."""

    constants: ClassVar[Mapping[str, Array]] = {BEAM_IDX: np.zeros(1, np.int32)}

    @property
    def state_dtype(self) -> np.dtype[np.generic]:
        """See `StatefulGraph.state_dtype`."""
        dtype: np.dtype[np.generic] = np.dtype(self._compiled.get_property(hints.kv_cache_precision).to_dtype())
        return dtype

    def new_state(self) -> State:
        """See `StatefulGraph.new_state`."""
        return _RequestState(self, self._new_request())

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """See `StatefulGraph.run`."""
        return self.new_state().run(inputs) if shared is None else super().run(inputs, shared)


class _RequestState:
    """The state of one request."""

    def __init__(self, graph: _StatefulGraph, request: ov.InferRequest) -> None:
        self._graph = graph
        self._request = request

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `State.run`."""
        return self._graph.infer(self._request, inputs)

    def read(self) -> list[FloatArray]:
        """See `State.read`."""
        with self._graph.failures():
            return [np.array(tensor.state.data) for tensor in self._tensors()]

    def write(self, tensors: Sequence[FloatArray]) -> None:
        """See `State.write`."""
        with self._graph.failures():
            for state, tensor in zip(self._tensors(), tensors, strict=True):
                state.state = ov.Tensor(np.asarray(tensor, order="C"), shared_memory=True)

    def _tensors(self) -> list[ov.VariableState]:
        return sorted(self._request.query_state(), key=lambda state: state.name)


def _ports(nodes: Sequence[Any]) -> list[Port]:
    return [
        Port(name=node.get_any_name(), dtype=_dtype(node.element_type), shape=_axes(node.partial_shape))
        for node in nodes
    ]


def _axes(shape: ov.PartialShape) -> tuple[int | None, ...]:
    return tuple(axis.get_length() if axis.is_static else None for axis in shape)


def _dtype(kind: ov.Type) -> np.dtype[np.generic] | None:
    try:
        dtype: np.dtype[np.generic] = np.dtype(kind.to_dtype())
    except (RuntimeError, TypeError):
        return None
    return dtype


def _version() -> str:
    return str(ov.__version__).partition("-")[0]
