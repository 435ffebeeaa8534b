"""The graphs of a bundle by role, each opened when it is first needed."""

from __future__ import annotations

import threading
from pathlib import Path

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import Engine, Graph
from edgevlm_runtime.errors import EngineError, UnsupportedTask
from edgevlm_runtime.manifest import Role


class Graphs:
    """Opens each graph once, however many threads ask for it."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._bundle = bundle
        self._engine = engine
        self._opened: dict[str, Graph] = {}
        self._lock = threading.Lock()
        self._closed = False

    def open(self, role: Role) -> Graph:
        """The graph of that role.

        Raises:
            UnsupportedTask: the model has none.
            EngineError: the engine can not open it, or the model was closed.
        """
        with self._lock:
            if self._closed:
                raise EngineError(f"{self._bundle.manifest.name} was closed; load it again")
            if role not in self._opened:
                self._opened[role] = self._engine.open(self._file(role))
            return self._opened[role]

    def release(self, role: Role) -> None:
        """Let go of one graph; it is opened again when it is needed."""
        with self._lock:
            self._opened.pop(role, None)

    def close(self) -> None:
        """Let go of all graphs; what still runs on one keeps it until it is done."""
        with self._lock:
            self._opened.clear()
            self._closed = True

    def _file(self, role: Role) -> Path:
        manifest = self._bundle.manifest
        if role not in manifest.graphs:
            raise UnsupportedTask(f"{manifest.name} has no {role} graph; it can: {', '.join(manifest.tasks)}")
        graph = manifest.graphs[role]
        return self._bundle.path(graph.compiled.get(self._engine.name, graph.file))
