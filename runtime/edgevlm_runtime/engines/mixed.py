"""OpenVINO for images, which are many tokens at once, and ONNX Runtime for text, which is one token after the other.

Either is faster at its part; a decoder on both would have its weights in memory twice.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm_runtime.engines import Graph
from edgevlm_runtime.engines.choice import MIXED
from edgevlm_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edgevlm_runtime.engines.openvino import OpenVinoEngine


class MixedEngine:
    """Opens IR with OpenVINO and ONNX files with ONNX Runtime; `choice.engine_of` says which of them a role has."""

    name = MIXED

    def __init__(self, *, threads: int) -> None:
        self._images = OpenVinoEngine(threads=threads)
        self._tokens = OnnxRuntimeEngine(threads=threads)

    def open(self, path: Path) -> Graph:
        """Open an .xml or .onnx file; raises as the engine that does."""
        return (self._images if path.suffix == ".xml" else self._tokens).open(path)
