"""Keys and values of the tokens that a decoder has seen, in buffers that a graph updates in place.

The cache knows positions and nothing of tokens, images or graphs' internals.
"""

from __future__ import annotations

import mmap
from math import prod

import numpy as np

from edgevlm_runtime.engines import FloatArray, Shared
from edgevlm_runtime.errors import ContextOverflow
from edgevlm_runtime.manifest import CacheSpec

# Not shared with a forked process; Windows knows no other kind and takes no flags.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class KVCache:
    """Float32 keys and values (1, kv_heads, max_context, head_dim) per layer, of which `length` positions are used.

    The buffers have their full size from the start: the system commits their pages when they are first written.
    """

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec
        self.length = 0
        self.shared = tuple(
            Shared(input=f"past_key_values.{layer}.{part}", output=f"present.{layer}.{part}", array=_buffer(spec))
            for layer in range(spec.n_layers)
            for part in ("key", "value")
        )

    @property
    def left(self) -> int:
        """Positions that are still free."""
        return self.spec.max_context - self.length

    def require(self, n_tokens: int) -> None:
        """Raise ContextOverflow where `n_tokens` more do not fit."""
        if n_tokens > self.left:
            raise ContextOverflow(
                f"the prompt takes {n_tokens} tokens, but only {self.left} of the model's {self.spec.max_context} "
                "positions are left; shorten the prompt"
            )

    def advance(self, n_tokens: int) -> None:
        """Count `n_tokens` positions as used, after a graph wrote them."""
        assert 0 <= n_tokens <= self.left
        self.length += n_tokens

    def rollback(self, length: int) -> None:
        """Forget all positions from `length` on. What is in them stays, unused, until it is overwritten."""
        assert 0 <= length <= self.length
        self.length = length

    def fork(self, length: int) -> KVCache:
        """A second cache with a copy of the first `length` positions, which nobody may be writing meanwhile."""
        assert 0 <= length <= self.length
        other = KVCache(self.spec)
        for mine, theirs in zip(self.shared, other.shared, strict=True):
            theirs.array[:, :, :length] = mine.array[:, :, :length]
        other.length = length
        return other


def _buffer(spec: CacheSpec) -> FloatArray:
    """Zeros (1, kv_heads, max_context, head_dim) without memory until they are written."""
    shape = (1, spec.n_kv_heads, spec.max_context, spec.head_dim)
    pages = mmap.mmap(-1, prod(shape) * np.dtype(np.float32).itemsize, **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # NumPy's own buffers ask for pages of 2 MB, each of which would span, and commit, the unused part of a head.
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.float32).reshape(shape)
