"""Qualcomm's Hexagon NPU: compiled graphs through ONNX Runtime's QNN plugin, and its simulator on x86-64 machines.

A compiled graph is an ONNX file with one EPContext node and the chip's binary beside it. Nothing falls back to the
CPU: what the NPU can not run is an error.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort
import onnxruntime_qnn

from edgevlm_runtime.engines import Array, Graph, SharedBuffers
from edgevlm_runtime.engines.onnxruntime import FAILURES, OnnxGraph, OnnxRuntimeEngine, session_options
from edgevlm_runtime.engines.signature import one_line
from edgevlm_runtime.errors import EngineError

VERSION: str = onnxruntime_qnn.__version__
COMPILED_SUFFIX = ".qnn.onnx"
_PROVIDER = "QNNExecutionProvider"
# Linux reaches the NPU through these; ONNX Runtime lists NPUs as devices only on Windows.
_LINUX_DEVICES = ("/dev/fastrpc-cdsp", "/dev/fastrpc-cdsp-secure", "/dev/adsprpc-smd")
_registering = threading.Lock()
_opening = threading.Lock()


class QnnEngine:
    """Opens graphs that were compiled for this machine's NPU, or for any where there is only the simulator.

    Graphs beside them that were not compiled, as those of texts, run on the CPU.
    """

    name = "qnn"

    def __init__(self, *, threads: int) -> None:
        self.threads = threads

    def open(self, path: Path) -> Graph:
        """Open an ONNX file, `*.qnn.onnx` with its binary beside it on the NPU.

        Raises:
            EngineError: not there, not ONNX, or compiled for another chip.
        """
        if not path.name.endswith(COMPILED_SUFFIX):
            return OnnxRuntimeEngine(threads=self.threads).open(path)
        try:
            session = open_session(path, {}, threads=self.threads)
        except FAILURES as error:
            raise EngineError(
                f"{path}: onnxruntime-qnn {VERSION} can not open it on {place()}: {one_line(error)}; "
                "if it is for another chip, --engine onnxruntime runs the uncompiled graph"
            ) from error
        return _QnnGraph(OnnxGraph(session, path), path)


class _QnnGraph:
    """An open session on the NPU."""

    def __init__(self, graph: Graph, path: Path) -> None:
        self._graph = graph
        self._path = path

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """See `Graph.run`; there are no shared buffers."""
        if shared is not None:
            raise EngineError(f"{self._path}: engine qnn can not update buffers in place ({shared.buffers[0].input})")
        return self._graph.run(inputs)


def open_session(
    path: Path, entries: Mapping[str, str], *, threads: int, htp_arch: int | None = None, fallback: bool = False
) -> ort.InferenceSession:
    """A session on the NPU or its simulator; `entries` are ONNX Runtime's session config entries.

    `htp_arch` is the Hexagon version to compile for; with `fallback` the CPU runs what the NPU can not.

    Raises:
        EngineError: the plugin can not be loaded.
        Exception: any of `FAILURES`, as ONNX Runtime raises it.
    """
    options = session_options(threads)
    arch = {} if htp_arch is None else {"htp_arch": str(htp_arch)}
    options.add_provider_for_devices(_devices(), {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **arch})
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "0" if fallback else "1")
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    with _quiet_simulator():
        return ort.InferenceSession(path, options)


def has_npu() -> bool:
    """Whether this machine has a Hexagon NPU; not tried on a device yet."""
    if any(device.device.type == ort.OrtHardwareDeviceType.NPU for device in _devices()):
        return True
    return platform.machine() == "aarch64" and any(os.path.exists(path) for path in _LINUX_DEVICES)


def place() -> str:
    """Where graphs run: "the Hexagon NPU" or "the simulator"."""
    return "the Hexagon NPU" if has_npu() else "the simulator"


def _devices() -> list[Any]:
    """The plugin's devices.

    Raises:
        EngineError: the plugin can not be loaded.
    """
    with _registering:
        return _register()


@cache
def _register() -> list[Any]:
    try:
        ort.register_execution_provider_library(_PROVIDER, onnxruntime_qnn.get_library_path())
        return [device for device in ort.get_ep_devices() if device.ep_name == _PROVIDER]
    except FAILURES as error:
        raise EngineError(f"onnxruntime-qnn {VERSION} can not be loaded: {one_line(error)}") from error


@contextmanager
def _quiet_simulator() -> Iterator[None]:
    """The simulator greets on the process's stdout when it is loaded, which would spoil what is piped from there."""
    if has_npu() or sys.platform == "win32":
        yield
        return
    with _opening:
        sys.stdout.flush()
        kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 1)
            yield
            ctypes.CDLL(None).fflush(None)
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            os.close(nowhere)
