"""The cache of a decoder whose graph keeps keys and values itself, and can only append to them.

What is forgotten stays in the graph and is hidden by the bias, which costs nothing; only when it is much, the state is
read, trimmed and written back.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np

from edgevlm_runtime.engines import Array, FloatArray, Graph, StatefulGraph
from edgevlm_runtime.errors import EngineError
from edgevlm_runtime.kv_cache import MASKED, BufferCache, KVCache
from edgevlm_runtime.manifest import CacheSpec

MAX_HIDDEN = 256  # positions: a few answers' worth, fewer than an image takes


def open_cache(graph: Graph, spec: CacheSpec, context: int | None = None) -> KVCache:
    """An empty cache for a graph of either kind; `context` as in `KVCache`."""
    if isinstance(graph, StatefulGraph):
        return StateCache(spec, graph, context)
    return BufferCache(spec, context)


class StateCache(KVCache):
    """A cache in the state of a graph, of which `run` takes no other than the one it was made for."""

    def __init__(self, spec: CacheSpec, graph: StatefulGraph, context: int | None = None) -> None:
        super().__init__(spec, context)
        self._graph = graph
        self._state = graph.new_state()
        self._places = np.arange(0)  # where each used position is in the state
        self._n_kept = 0  # positions in the state, used or hidden
        self._room: list[FloatArray] = []
        self._lock = threading.Lock()  # of the state, which can not be read while the graph runs

    @property
    def layout(self) -> str:
        """See `KVCache.layout`."""
        spec = self.spec
        return f"{self._graph.state_dtype} state {spec.n_layers}x{spec.n_kv_heads}x{spec.head_dim}"

    def nbytes(self, length: int) -> int:
        """See `KVCache.nbytes`; without the scales of compressed state."""
        spec = self.spec
        return 2 * spec.n_layers * spec.n_kv_heads * length * spec.head_dim * self._graph.state_dtype.itemsize

    def run(self, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `KVCache.run`."""
        assert graph is self._graph
        n_tokens = inputs["embeddings"].shape[1]
        with self._lock:
            self._forget(self.length)
            bias = self._hide(inputs["attention_bias"])
            try:
                outputs = self._state.run({**inputs, "attention_bias": bias})
            except EngineError:
                self._trim()  # it may have appended to some layers
                raise
            self._places = np.append(self._places, np.arange(self._n_kept, self._n_kept + n_tokens))
            self._n_kept += n_tokens
            return outputs

    def rollback(self, length: int) -> None:
        """See `KVCache.rollback`."""
        super().rollback(length)
        with self._lock:
            self._forget(length)
            if self._n_kept - length > MAX_HIDDEN:
                self._trim()

    def blocks(self, length: int) -> list[Array]:
        """See `KVCache.blocks`; copies."""
        with self._lock:
            return [head for tensor in self._read(length) for head in tensor[0]]

    def room(self, length: int) -> list[Array]:
        """See `KVCache.room`."""
        shape = (1, self.spec.n_kv_heads, length, self.spec.head_dim)
        self._room = [np.empty(shape, np.float32) for _ in range(2 * self.spec.n_layers)]
        return [head for tensor in self._room for head in tensor[0]]

    def fill(self, length: int) -> None:
        """See `KVCache.fill`."""
        with self._lock:
            self._write(self._room)
        self._room = []
        self.advance(length)

    def fork(self, length: int) -> StateCache:
        """See `KVCache.fork`; waits while the graph runs on this one, which may go on afterwards."""
        other = StateCache(self.spec, self._graph, self.context)
        if length > 0:
            with self._lock:
                tensors = self._read(length)
            other._write(tensors)
            other.advance(length)
        return other

    def _hide(self, bias: FloatArray) -> FloatArray:
        """A bias (1, 1, tokens, past + tokens) for all that the state keeps."""
        n_used = len(self._places)
        if n_used == self._n_kept:
            return bias
        n_tokens = bias.shape[2]
        spread = np.full((1, 1, n_tokens, self._n_kept + bias.shape[3] - n_used), MASKED)
        spread[..., self._places] = bias[..., :n_used]
        spread[..., self._n_kept :] = bias[..., n_used:]
        return spread

    def _forget(self, length: int) -> None:
        self._places = self._places[:length]

    def _trim(self) -> None:
        """Keep what is used, and nothing else."""
        if len(self._places) > 0:
            self._write(self._read(len(self._places)))
        else:  # engines can neither read nor write a state without positions
            self._state = self._graph.new_state()
            self._n_kept = 0

    def _read(self, length: int) -> list[FloatArray]:
        """The first `length` positions of each tensor, contiguous."""
        return [np.ascontiguousarray(tensor[:, :, self._places[:length]]) for tensor in self._state.read()]

    def _write(self, tensors: list[FloatArray]) -> None:
        self._state.write(tensors)
        self._n_kept = tensors[0].shape[2]
        self._places = np.arange(self._n_kept)
