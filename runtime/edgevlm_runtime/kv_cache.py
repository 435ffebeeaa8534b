"""Keys and values of the tokens that a decoder has seen, position by position.

A cache knows positions and nothing of tokens, images or graphs' internals. This one keeps them in buffers that a graph
updates in place; see `state_cache` for graphs that keep them themselves.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod

import numpy as np

from edgevlm_runtime.engines import Array, FloatArray, Graph, Shared, SharedBuffers
from edgevlm_runtime.errors import ContextOverflow
from edgevlm_runtime.manifest import CacheSpec

MASKED = np.float32(-1e9)  # what a token may not look at; finite: softmax of -inf alone would be NaN

# Not shared with a forked process; Windows knows no other kind and takes no flags.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class KVCache(ABC):
    """Keys and values (1, kv_heads, positions, head_dim) per layer, of which `length` positions are used.

    There are as many positions as `context` says, None for all that the model knows.
    """

    def __init__(self, spec: CacheSpec, context: int | None = None) -> None:
        self.spec = spec
        self.context = spec.max_context if context is None else context
        self.length = 0

    @property
    def left(self) -> int:
        """Positions that are still free."""
        return self.context - self.length

    @property
    @abstractmethod
    def layout(self) -> str:
        """How a position is kept: caches of one layout may take over each other's blocks, whatever their sizes."""

    @abstractmethod
    def nbytes(self, length: int) -> int:
        """Bytes of memory that `length` positions take."""

    @abstractmethod
    def run(self, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the decoder's graph on tokens behind those used, and keep their keys and values; raises as `Graph.run`.

        They are used once `advance` counts them.
        """

    @abstractmethod
    def blocks(self, length: int) -> list[Array]:
        """The first `length` positions, used, as contiguous arrays (positions, head_dim), one per head; not to be
        written to."""

    @abstractmethod
    def room(self, length: int) -> list[Array]:
        """Arrays as those of `blocks`, to be written to; what is in them counts once `fill` is called."""

    @abstractmethod
    def fill(self, length: int) -> None:
        """Use `length` positions, whose `room` was written to, of a cache that was empty."""

    @abstractmethod
    def fork(self, length: int) -> KVCache:
        """A second cache with a copy of the first `length` positions, which nobody may be writing meanwhile."""

    def require(self, n_tokens: int) -> None:
        """Raise ContextOverflow where `n_tokens` more do not fit."""
        if n_tokens > self.left:
            own = self.context == self.spec.max_context
            whose = f"the model's {self.context} positions" if own else f"the {self.context} positions of `context`"
            remedy = "shorten the prompt" if own else f"raise it, to {self.spec.max_context} at most"
            raise ContextOverflow(
                f"the prompt takes {n_tokens} tokens, but only {self.left} of {whose} are left; {remedy}"
            )

    def advance(self, n_tokens: int) -> None:
        """Count `n_tokens` positions as used, after a graph wrote them."""
        assert 0 <= n_tokens <= self.left
        self.length += n_tokens

    def rollback(self, length: int) -> None:
        """Forget all positions from `length` on."""
        assert 0 <= length <= self.length
        self.length = length


class BufferCache(KVCache):
    """A cache in buffers, which a graph shares.

    They have the size that the graph wants from the start: the system commits their pages when they are first written,
    so that `context` limits the memory. What is forgotten stays, unused, until it is overwritten.
    """

    def __init__(self, spec: CacheSpec, context: int | None = None) -> None:
        super().__init__(spec, context)
        self.shared = SharedBuffers(
            tuple(
                Shared(input=f"past_key_values.{layer}.{part}", output=f"present.{layer}.{part}", array=_buffer(spec))
                for layer in range(spec.n_layers)
                for part in ("key", "value")
            )
        )

    @property
    def layout(self) -> str:
        """See `KVCache.layout`."""
        arrays = (buffer.array for buffer in self.shared.buffers)
        return " ".join(f"{array.dtype} {array.shape[1]}x{array.shape[3:]}" for array in arrays)

    def nbytes(self, length: int) -> int:
        """See `KVCache.nbytes`; without what there is room for."""
        return length * sum(buffer.array.nbytes // self.spec.max_context for buffer in self.shared.buffers)

    def run(self, graph: Graph, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See `KVCache.run`."""
        return graph.run(inputs, self.shared)

    def blocks(self, length: int) -> list[Array]:
        """See `KVCache.blocks`; views."""
        return [head[:length] for buffer in self.shared.buffers for head in buffer.array[0]]

    def room(self, length: int) -> list[Array]:
        """See `KVCache.room`; the positions themselves."""
        return self.blocks(length)

    def fill(self, length: int) -> None:
        """See `KVCache.fill`."""
        self.advance(length)

    def fork(self, length: int) -> BufferCache:
        """See `KVCache.fork`."""
        assert 0 <= length <= self.length
        other = BufferCache(self.spec, self.context)
        for mine, theirs in zip(self.shared.buffers, other.shared.buffers, strict=True):
            theirs.array[:, :, :length] = mine.array[:, :, :length]
        other.length = length
        return other


def attention_bias(n_past: int, n_tokens: int, *, bidirectional: bool = False) -> FloatArray:
    """Float32 (1, 1, tokens, past + tokens): 0 where a token may look, MASKED where not.

    Tokens see all that is past and what comes before them; `bidirectional` ones see each other.
    """
    bias = np.zeros((1, 1, n_tokens, n_past + n_tokens), np.float32)
    if not bidirectional:
        bias[0, 0, :, n_past:][np.triu_indices(n_tokens, k=1)] = MASKED
    return bias


def _buffer(spec: CacheSpec) -> Array:
    """Zeros (1, kv_heads, max_context, head_dim) without memory until they are written."""
    shape, dtype = (1, spec.n_kv_heads, spec.max_context, spec.head_dim), np.dtype(spec.dtype)
    pages = mmap.mmap(-1, prod(shape) * dtype.itemsize, **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # NumPy's own buffers ask for pages of 2 MB, each of which would span, and commit, the unused part of a head.
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)
