"""The graphs of a bundle by role, each opened when it is first needed, or ahead of that in the background."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import Engine, Graph
from edgevlm_runtime.engines.choice import engine_of
from edgevlm_runtime.errors import EngineError, UnsupportedTask
from edgevlm_runtime.manifest import Role


class Graphs:
    """Opens each graph once, however many threads ask for it; different graphs are opened at the same time."""

    def __init__(self, bundle: Bundle, engine: Engine) -> None:
        self._bundle = bundle
        self._engine = engine
        self._opened: dict[str, _Opening] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def open(self, role: Role) -> Graph:
        """The graph of that role.

        Raises:
            UnsupportedTask: the model has none.
            EngineError: the engine can not open it, or the model was closed.
        """
        return self._opening(role).graph()

    def prefetch(self, *roles: Role) -> None:
        """Begin to open those graphs that the model has, in the background.

        What fails there fails again, and is raised, where the graph is asked for.
        """
        openings = [self._opening(role) for role in roles if role in self._bundle.manifest.graphs]
        for opening in openings:
            # Not a daemon: the interpreter must not end within an engine.
            thread = threading.Thread(target=opening.try_graph, name="open-graph")
            with self._lock:
                self._threads = [*(each for each in self._threads if each.is_alive()), thread]
                thread.start()

    def release(self, roles: Sequence[Role]) -> None:
        """Let go of some graphs; they are opened again when they are needed."""
        with self._lock:
            for role in roles:
                self._opened.pop(role, None)

    def close(self) -> None:
        """Let go of all graphs; what still runs on one keeps it until it is done. Waits for those being opened."""
        with self._lock:
            self._opened.clear()
            self._closed = True
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()

    def _opening(self, role: Role) -> _Opening:
        with self._lock:
            if self._closed:
                raise EngineError(f"{self._bundle.manifest.name} was closed; load it again")
            if role not in self._opened:
                self._opened[role] = _Opening(self._engine, self._file(role))
            return self._opened[role]

    def _file(self, role: Role) -> Path:
        manifest = self._bundle.manifest
        if role not in manifest.graphs:
            raise UnsupportedTask(f"{manifest.name} has no {role} graph; it can: {', '.join(manifest.tasks)}")
        graph = manifest.graphs[role]
        return self._bundle.path(graph.compiled.get(engine_of(self._engine.name, role), graph.file))


class _Opening:
    """One graph, opened by the first thread that asks for it while the others wait."""

    def __init__(self, engine: Engine, path: Path) -> None:
        self._engine = engine
        self._path = path
        self._graph: Graph | None = None
        self._lock = threading.Lock()

    def graph(self) -> Graph:
        """The graph; raises as `Engine.open`."""
        with self._lock:
            if self._graph is None:
                self._graph = self._engine.open(self._path)
            return self._graph

    def try_graph(self) -> None:
        """`graph` for a background thread."""
        with suppress(Exception):
            self.graph()
