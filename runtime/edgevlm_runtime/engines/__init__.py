"""What the runtime asks of an inference engine: open a graph, run it on arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

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
