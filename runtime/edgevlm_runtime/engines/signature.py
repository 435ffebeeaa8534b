"""What goes into a graph and what comes out: checked before an engine sees it, with the same words for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgevlm_runtime.engines import Array, Shared
from edgevlm_runtime.errors import EngineError

Axis: TypeAlias = int | str | None


@dataclass(frozen=True, kw_only=True)
class Port:
    """One input or output. An axis is an int where fixed, else its name or None; `dtype` None is one NumPy lacks."""

    name: str
    dtype: np.dtype[np.generic] | None
    shape: tuple[Axis, ...]


class Signature:
    """The inputs and outputs of the graph in a file."""

    def __init__(self, path: Path, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self.inputs = {port.name: port for port in inputs}
        self.outputs = {port.name: port for port in outputs}
        self._path = path

    def check(self, inputs: Mapping[str, Array]) -> None:
        """Refuse what a run with raw addresses could not survive.

        Raises:
            EngineError: a name, dtype or shape is wrong.
        """
        self._check_names(list(inputs), self.inputs, "input", complete=True)
        for name, array in inputs.items():
            self._check_array(array, self.inputs[name], "input")

    def without(self, shared: Sequence[Shared]) -> Signature:
        """What is left to be given and to come out where these buffers are shared.

        Raises:
            EngineError: a name, dtype or shape is wrong, or a buffer can not be written in place.
        """
        given = [buffer.input for buffer in shared]
        updated = [buffer.output for buffer in shared]
        self._check_names(given, self.inputs, "input", complete=False)
        self._check_names(updated, self.outputs, "output", complete=False)
        for buffer in shared:
            self._check_array(buffer.array, self.inputs[buffer.input], "input")
            self._check_array(buffer.array, self.outputs[buffer.output], "output")
            if not buffer.array.flags.c_contiguous or not buffer.array.flags.writeable:
                raise EngineError(f"{self._path}: shared buffer {buffer.input!r} must be contiguous and writable")
        inputs = [port for name, port in self.inputs.items() if name not in given]
        return Signature(self._path, inputs, [port for name, port in self.outputs.items() if name not in updated])

    def _check_names(self, given: Sequence[str], known: Mapping[str, Port], kind: str, *, complete: bool) -> None:
        unknown = [name for name in given if name not in known]
        missing = [name for name in known if name not in given] if complete else []
        twice = sorted({name for name in given if given.count(name) > 1}) if len(set(given)) < len(given) else []
        for names, problem in ((unknown, "no such"), (missing, "missing"), (twice, "twice given")):
            if names:
                raise EngineError(f"{self._path}: {problem} {kind} {', '.join(names)} (it has {', '.join(known)})")

    def _check_array(self, array: Array, port: Port, kind: str) -> None:
        """The dtype and every fixed axis of one tensor."""
        fits = len(array.shape) == len(port.shape) and all(
            not isinstance(expected, int) or expected == actual
            for expected, actual in zip(port.shape, array.shape, strict=True)
        )
        if array.dtype != port.dtype or not fits:
            needed = f"{port.dtype or 'of a type that NumPy lacks'} {_shape(port.shape)}"
            found = f"{array.dtype} {_shape(array.shape)}"
            raise EngineError(f"{self._path}: {kind} {port.name!r} must be {needed}, not {found}")


def one_line(error: BaseException) -> str:
    """An engine's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _shape(axes: Sequence[Axis]) -> str:
    return "(" + ", ".join("?" if axis is None else str(axis) for axis in axes) + ")"
