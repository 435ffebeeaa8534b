"""Graph files on ONNX Runtime's CPU, as the export runs them to calibrate and to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from edgevlm_runtime.engines import Array
from edgevlm_runtime.fidelity import mean_cosine

_ERRORS_ONLY = 3


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """A session that says nothing but errors."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_each(path: Path, inputs: Sequence[Mapping[str, Array]]) -> list[list[Array]]:
    """The outputs for each of the inputs, in the graph's order."""
    session = open_session(path)
    return [session.run(None, dict(feed)) for feed in inputs]


def worst_cosine(outputs: Sequence[Array], expected: Sequence[Array]) -> float:
    """The mean cosine of the output that is farthest from what is expected."""
    return min(mean_cosine(*pair) for pair in zip(outputs, expected, strict=True))
