"""What compiling a graph gives, whatever the NPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """Files in the bundle: `file` is the graph that any CPU runs, `compiled` by engine what the NPU runs."""

    file: str
    compiled: dict[str, str]
    compiler: str
