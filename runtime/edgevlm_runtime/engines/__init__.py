"""What the runtime asks of an inference engine: open a graph, run it on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.engines.choice import ENGINES, INSTALL, MIXED, choose, installed_engines, unfit
from edgevlm_runtime.engines.threads import thread_count
from edgevlm_runtime.errors import EngineError, InvalidOption
from edgevlm_runtime.manifest import Manifest

__all__ = [
    "ENGINES",
    "Array",
    "Engine",
    "FloatArray",
    "Graph",
    "Shared",
    "SharedBuffers",
    "State",
    "StatefulGraph",
    "installed_engines",
    "open_engine",
]

Array: TypeAlias = npt.NDArray[Any]
FloatArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A buffer that a graph reads as `input` and updates in place as `output`."""

    input: str
    output: str
    array: Array


@dataclass(frozen=True, eq=False)
class SharedBuffers:
    """All buffers of one cache. An engine may keep what it prepares for them for as long as this object lives."""

    buffers: tuple[Shared, ...]


class Graph(Protocol):
    """An opened graph. It may be run by several threads at once."""

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """All outputs by name, but for those of `shared`, whose arrays are updated in place without a copy.

        Runs on the same `shared` must not overlap.

        Raises:
            EngineError: the engine failed, or an input has the wrong name, dtype or shape.
        """
        ...


class State(Protocol):
    """What a graph keeps of one sequence of tokens. Calls must not overlap."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on the tokens that come next and append to the state; see `Graph.run`."""
        ...

    def read(self) -> list[FloatArray]:
        """A copy of the state, (1, heads, positions, head_dim) each: the first layer's keys, its values, and so on."""
        ...

    def write(self, tensors: Sequence[FloatArray]) -> None:
        """Replace the state by a copy of what `read` gave of this or another one."""
        ...


@runtime_checkable
class StatefulGraph(Graph, Protocol):
    """A graph that keeps the keys and values of its tokens itself; `run` starts a sequence that nobody goes on with."""

    @property
    def state_dtype(self) -> np.dtype[np.generic]:
        """What numbers are kept as."""
        ...

    def new_state(self) -> State:
        """An empty state."""
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


def open_engine(name: str = "auto", threads: int | None = None, manifest: Manifest | None = None) -> Engine:
    """The engine of that name; "auto" takes the best one installed for the bundle of `manifest`.

    `threads` is how many threads one graph may use: EDGEVLM_THREADS or the number of physical cores when None.

    Raises:
        InvalidOption: an unknown name, a count that can not be used, "qnn" for a bundle that is not compiled for it,
            or "openvino" or "mixed" for one that has no IR, or no decoder, for it.
        EngineError: the engine is not installed, or "auto" for a bundle of an NPU that this machine does not have.
    """
    if name not in ENGINES:
        raise InvalidOption(f"engine {name!r} is unknown; known: {', '.join(ENGINES)}")
    count = thread_count(threads)
    name = choose(manifest) if name == "auto" else name
    npu = manifest is not None and manifest.npu is not None and manifest.npu.engine == name
    if name == "qnn" and manifest is not None and not npu:
        raise InvalidOption(f"{manifest.name} is not compiled for an NPU of engine qnn; export it with --npu")
    if manifest is not None and (reason := unfit(name, manifest)) is not None:
        raise InvalidOption(reason)
    try:
        return _load(name, count, npu=npu)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: a plugin that can not be registered
        reason = " ".join(str(error).split())
        raise EngineError(f"engine {name} can not be loaded ({reason}): {INSTALL[name]}") from error


def _load(name: str, threads: int, *, npu: bool) -> Engine:
    """Import an engine's package; `npu` where the bundle is for an NPU of this engine."""
    if name == "openvino":
        from edgevlm_runtime.engines import openvino

        device = openvino.NPU if npu and openvino.has_npu() else "CPU"
        return openvino.OpenVinoEngine(threads=threads, device=device)
    if name == "qnn":
        from edgevlm_runtime.engines.qnn import QnnEngine

        return QnnEngine(threads=threads)
    if name == MIXED:
        from edgevlm_runtime.engines.mixed import MixedEngine

        return MixedEngine(threads=threads)
    from edgevlm_runtime.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads=threads)
