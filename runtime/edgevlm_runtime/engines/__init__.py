"""What the runtime asks of an inference engine: open a graph, run it on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.engines.threads import thread_count
from edgevlm_runtime.errors import EngineError, InvalidOption

ENGINES = ("auto", "onnxruntime")

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A buffer that a graph reads as `input` and updates in place as `output`."""

    input: str
    output: str
    array: Array


class Graph(Protocol):
    """An opened graph. It may be run by several threads at once."""

    def run(self, inputs: Mapping[str, Array], shared: tuple[Shared, ...] = ()) -> dict[str, Array]:
        """All outputs by name, but for those of `shared`, whose arrays are updated in place without a copy.

        Raises:
            EngineError: the engine failed, or an input has the wrong name, dtype or shape.
        """
        ...


class Engine(Protocol):
    """A factory of graphs."""

    name: str

    def open(self, path: Path) -> Graph:
        """Open a graph file; its external data is memory-mapped.

        Raises:
            EngineError: the engine can not read the file.
        """
        ...


def open_engine(name: str = "auto", threads: int | None = None) -> Engine:
    """The engine of that name; "auto" takes the best one installed.

    `threads` is how many threads one graph may use: EDGEVLM_THREADS or the number of physical cores when None.

    Raises:
        InvalidOption: an unknown name, or a count that can not be used.
        EngineError: the engine is not installed.
    """
    if name not in ENGINES:
        raise InvalidOption(f"engine {name!r} is unknown; known: {', '.join(ENGINES)}")
    count = thread_count(threads)
    try:
        from edgevlm_runtime.engines.onnxruntime import OnnxRuntimeEngine
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"engine onnxruntime can not be loaded ({reason}): pip install onnxruntime") from error
    return OnnxRuntimeEngine(threads=count)
