"""ONNX Runtime on the CPU: graphs are opened by path, so that their weights stay memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgevlm_runtime.engines import Array, Graph, Shared
from edgevlm_runtime.errors import EngineError

# What sessions raise: one Exception subclass for each status code, and what pybind makes of C++ exceptions.
_FAILURES: tuple[type[BaseException], ...] = (
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
_DTYPES = {
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
            session = ort.InferenceSession(path, self._options(), providers=["CPUExecutionProvider"])
        except _FAILURES as error:
            raise EngineError(f"{path}: ONNX Runtime {ort.__version__} can not open it: {_line(error)}") from error
        return _OnnxGraph(session, path)

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        # Every step has a new total length, and a memory plan would be kept for each.
        options.enable_mem_pattern = False
        # Failures are raised; nothing else belongs on stderr.
        options.log_severity_level = _FATAL_ONLY
        return options


class _OnnxGraph:
    """An open session. Bindings are made for each run, so threads may run it at once."""

    def __init__(self, session: ort.InferenceSession, path: Path) -> None:
        self._session = session
        self._path = path
        self._inputs = {node.name: node for node in session.get_inputs()}
        self._outputs = {node.name: node for node in session.get_outputs()}

    def run(self, inputs: Mapping[str, Array], shared: tuple[Shared, ...] = ()) -> dict[str, Array]:
        """See `Graph.run`."""
        self._check(inputs, shared)
        # Kept in this frame: the binding holds addresses only.
        contiguous = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        updated = {buffer.output for buffer in shared}
        fresh = [name for name in self._outputs if name not in updated]
        try:
            binding = self._bind(contiguous, shared, fresh)
            self._session.run_with_iobinding(binding, _run_options(contiguous))
            values = binding.get_outputs()[: len(fresh)]
            return {name: value.numpy() for name, value in zip(fresh, values, strict=True)}
        except _FAILURES as error:
            raise EngineError(f"{self._path}: ONNX Runtime failed: {_line(error)}") from error

    def _bind(self, inputs: dict[str, Array], shared: tuple[Shared, ...], fresh: list[str]) -> ort.IOBinding:
        """Outputs of `fresh` are bound first, in order, and allocated by the engine."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name in fresh:
            binding.bind_output(name, "cpu")
        for buffer in shared:
            place = ("cpu", 0, buffer.array.dtype, buffer.array.shape, buffer.array.ctypes.data)
            binding.bind_input(buffer.input, *place)
            binding.bind_output(buffer.output, *place)
        return binding

    def _check(self, inputs: Mapping[str, Array], shared: tuple[Shared, ...]) -> None:
        """Refuse what a run with raw addresses could not survive."""
        given = [*inputs, *(buffer.input for buffer in shared)]
        updated = [buffer.output for buffer in shared]
        self._check_names(given, self._inputs, "input", complete=True)
        self._check_names(updated, self._outputs, "output", complete=False)
        for name, array in inputs.items():
            self._check_array(array, self._inputs[name], "input")
        for buffer in shared:
            self._check_array(buffer.array, self._inputs[buffer.input], "input")
            self._check_array(buffer.array, self._outputs[buffer.output], "output")
            if not buffer.array.flags.c_contiguous or not buffer.array.flags.writeable:
                raise EngineError(f"{self._path}: shared buffer {buffer.input!r} must be contiguous and writable")

    def _check_names(self, given: Sequence[str], known: Mapping[str, Any], kind: str, *, complete: bool) -> None:
        unknown = [name for name in given if name not in known]
        missing = [name for name in known if name not in given] if complete else []
        twice = sorted({name for name in given if given.count(name) > 1}) if len(set(given)) < len(given) else []
        for names, problem in ((unknown, "no such"), (missing, "missing"), (twice, "twice given")):
            if names:
                raise EngineError(f"{self._path}: {problem} {kind} {', '.join(names)} (it has {', '.join(known)})")

    def _check_array(self, array: Array, node: Any, kind: str) -> None:
        """The dtype and every fixed axis of one tensor."""
        dtype = _DTYPES.get(node.type)
        fits = len(array.shape) == len(node.shape) and all(
            not isinstance(expected, int) or expected == actual
            for expected, actual in zip(node.shape, array.shape, strict=True)
        )
        if array.dtype != dtype or not fits:
            needed = f"{dtype or node.type} {_shape(node.shape)}"
            found = f"{array.dtype} {_shape(array.shape)}"
            raise EngineError(f"{self._path}: {kind} {node.name!r} must be {needed}, not {found}")


def _run_options(inputs: Mapping[str, Array]) -> ort.RunOptions | None:
    """After a crop or a long prompt the arena gives its memory back; for single tokens it would only fetch it again."""
    if sum(array.nbytes for array in inputs.values()) < _LARGE_BYTES:
        return None
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _shape(axes: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("?" if axis is None else str(axis) for axis in axes) + ")"


def _line(error: BaseException) -> str:
    """The engine's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__
