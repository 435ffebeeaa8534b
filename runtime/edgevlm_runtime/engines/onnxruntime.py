"""ONNX Runtime on the CPU: graphs are opened by path, so that their weights stay memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgevlm_runtime.engines import Array, Graph, Shared, SharedBuffers
from edgevlm_runtime.engines.signature import Port, Signature, one_line
from edgevlm_runtime.errors import EngineError

# What sessions raise: one Exception subclass for each status code, and what pybind makes of C++ exceptions.
FAILURES: tuple[type[BaseException], ...] = (
    *(
        kind
        for kind in vars(ort_errors).values()
        if isinstance(kind, type) and issubclass(kind, Exception) and kind.__module__ == ort_errors.__name__
    ),
    RuntimeError,
    ValueError,
    TypeError,
    MemoryError,
)
_DTYPES: dict[str, np.dtype[np.generic]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(bool)": np.dtype(np.bool_),
    **{f"tensor({name})": np.dtype(name) for name in ("int8", "uint8", "int16", "uint16")},
    **{f"tensor({name})": np.dtype(name) for name in ("int32", "uint32", "int64", "uint64")},
}
_FATAL_ONLY = 4
_LARGE_BYTES = 1_000_000


class OnnxRuntimeEngine:
    """Opens ONNX files. Each graph has `threads` threads of its own, which wait while it is not running."""

    name = "onnxruntime"

    def __init__(self, *, threads: int) -> None:
        self.threads = threads

    def open(self, path: Path) -> Graph:
        """Open an ONNX file beside its external data.

        Raises:
            EngineError: not there, not ONNX, or with an operator that this ONNX Runtime does not have.
        """
        try:
            session = ort.InferenceSession(path, session_options(self.threads), providers=["CPUExecutionProvider"])
        except FAILURES as error:
            raise EngineError(f"{path}: ONNX Runtime {ort.__version__} can not open it: {one_line(error)}") from error
        return OnnxGraph(session, path)


def session_options(threads: int) -> ort.SessionOptions:
    """Options of all our sessions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Every step has a new total length, and a memory plan would be kept for each.
    options.enable_mem_pattern = False
    # Threads that spin between runs take the cores from the next graph, which has its own.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Failures are raised; nothing else belongs on stderr.
    options.log_severity_level = _FATAL_ONLY
    return options


class OnnxGraph:
    """An open session. Threads may run it at once: bindings belong to a run or to the buffers of one cache."""

    def __init__(self, session: ort.InferenceSession, path: Path) -> None:
        self._session = session
        self._path = path
        self._signature = Signature(path, _ports(session.get_inputs()), _ports(session.get_outputs()))
        self._bound: WeakKeyDictionary[SharedBuffers, _Binding] = WeakKeyDictionary()

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """See `Graph.run`."""
        try:
            return self._binding(shared).run(inputs)
        except FAILURES as error:
            raise EngineError(f"{self._path}: ONNX Runtime failed: {one_line(error)}") from error

    def _binding(self, shared: SharedBuffers | None) -> _Binding:
        """Buffers are bound once: a decoder of 24 layers has 48 of them, and would bind them for each token."""
        if shared is None:
            return _Binding(self._session, self._signature)
        if (known := self._bound.get(shared)) is not None:
            return known
        return self._bound.setdefault(shared, _Binding(self._session, self._signature, shared.buffers))


class _Binding:
    """Where one caller's arrays are. Shared outputs come first; the others are allocated by the engine."""

    def __init__(self, session: ort.InferenceSession, signature: Signature, shared: Sequence[Shared] = ()) -> None:
        """Raises as `Signature.without`."""
        self._session = session
        self._signature = signature.without(shared)
        self._n_shared = len(shared)
        self._binding = session.io_binding()
        for buffer in shared:
            place = ("cpu", 0, buffer.array.dtype, buffer.array.shape, buffer.array.ctypes.data)
            self._binding.bind_input(buffer.input, *place)
            self._binding.bind_output(buffer.output, *place)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All fresh outputs by name.

        Raises:
            EngineError: an input has the wrong name, dtype or shape.
            Exception: any of `FAILURES`, as ONNX Runtime raises it.
        """
        self._signature.check(inputs)
        # Kept in this frame: the binding holds addresses only.
        contiguous = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        for name, array in contiguous.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        # Anew for each run: the engine would write into what it gave in the last one, which may have had another shape.
        for name in self._signature.outputs:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding, _run_options(contiguous))
        values = self._binding.get_outputs_as_ortvaluevector()
        return {name: values[index].numpy() for index, name in enumerate(self._signature.outputs, self._n_shared)}


def _ports(nodes: list[Any]) -> list[Port]:
    return [Port(name=node.name, dtype=_DTYPES.get(node.type), shape=tuple(node.shape)) for node in nodes]


def _run_options(inputs: Mapping[str, Array]) -> ort.RunOptions | None:
    """After a crop or a long prompt the arena gives its memory back; for single tokens it would only fetch it again."""
    if sum(array.nbytes for array in inputs.values()) < _LARGE_BYTES:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options
