"""Image tokens and words through the layers that mix them, before the decoder sees either.

Every frame is read by itself, its patches and compressed tokens first, then the words before the image. Their keys and
values are kept, so that a question costs only its own tokens: on each frame, averaged over all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgevlm_runtime.engines import Array, FloatArray, Graph
from edgevlm_runtime.errors import BadImage
from edgevlm_runtime.kv_cache import KVCache, attention_bias
from edgevlm_runtime.manifest import CacheSpec, FusionSpec
from edgevlm_runtime.state_cache import open_cache

MAX_TOKENS = 1024  # of one call: scores of all tokens with all others would fill the memory


@dataclass(frozen=True, kw_only=True)
class FusedFrames:
    """What the decoder is given of frames, and what later words are mixed with.

    `tokens` float32 (frames * compressed, dim) are in the frames' order; `before` (tokens, dim) are the words before
    them. `states` float32 (heads, positions, head_dim), one per frame, are keys and values of all layers and heads.
    """

    tokens: FloatArray
    before: FloatArray
    states: tuple[FloatArray, ...]


def state_shape(spec: FusionSpec, n_positions: int) -> tuple[int, int, int]:
    """Of one of `FusedFrames.states`."""
    return 2 * spec.n_layers * spec.n_kv_heads, n_positions, spec.head_dim


class Fuser:
    """The graph `prefuse`, opened when it is first needed. Threads may share it."""

    def __init__(self, spec: FusionSpec, open_graph: Callable[[], Graph]) -> None:
        self._spec = spec
        self._open = open_graph

    def read(self, frames: Iterable[FloatArray], ids: Sequence[int], words: FloatArray) -> FusedFrames:
        """Read frames' image tokens (tokens, dim) as they come, and before them words: ids and embeddings (n, dim).

        Raises:
            ContextOverflow: a frame and the words do not fit.
            EngineError: the graph failed.
            BadImage: there are no frames.
        """
        kept = self._kept(ids)
        graph = self._open()
        cache = self._new_cache(graph)
        total, tokens, states = np.zeros_like(words[kept]), [], []
        for frame in frames:
            cache.rollback(0)
            fused = self._run(graph, np.concatenate((frame, words[kept])), cache)
            tokens.append(fused[len(frame) - self._spec.n_compressed : len(frame)])
            total += fused[len(frame) :]
            states.append(np.stack(cache.blocks(cache.length)))
        if not states:
            raise BadImage("there are no frames to look at")
        before = words.copy()
        before[kept] = total / np.float32(len(states))
        return FusedFrames(tokens=np.concatenate(tokens), before=before, states=tuple(states))

    def mix(self, ids: Sequence[int], words: FloatArray, states: Sequence[FloatArray]) -> FloatArray:
        """Words, ids and embeddings (tokens, dim), behind what was read before; raises as `read`."""
        kept = self._kept(ids)
        graph = self._open()
        cache = self._new_cache(graph)
        total = np.zeros_like(words[kept])
        for state in states:
            cache.rollback(0)
            for room, block in zip(cache.room(state.shape[1]), state, strict=True):
                room[:] = block
            cache.fill(state.shape[1])
            total += self._run(graph, words[kept], cache)
        mixed = words.copy()
        mixed[kept] = total / np.float32(len(states))
        return mixed

    def _kept(self, ids: Sequence[int]) -> list[int]:
        """Where the ids are that take part."""
        return [place for place, token in enumerate(ids) if token not in self._spec.raw_ids]

    def _new_cache(self, graph: Graph) -> KVCache:
        spec = self._spec
        cache = CacheSpec(
            n_layers=spec.n_layers,
            n_kv_heads=spec.n_kv_heads,
            head_dim=spec.head_dim,
            max_context=spec.max_context,
        )
        return open_cache(graph, cache)

    def _run(self, graph: Graph, embeddings: FloatArray, cache: KVCache) -> FloatArray:
        """Append embeddings (tokens, dim), each of which sees what is before it; what comes out, of the same shape."""
        cache.require(len(embeddings))
        fused = [embeddings[:0]]
        for start in range(0, len(embeddings), MAX_TOKENS):
            part = embeddings[start : start + MAX_TOKENS]
            total = cache.length + len(part)
            inputs: dict[str, Array] = {
                "embeddings": part[None],
                "attention_bias": attention_bias(cache.length, len(part)),
                "seqlens_k": np.array([total - 1], np.int32),
                "total_sequence_length": np.array(total, np.int32),
            }
            fused.append(cache.run(graph, inputs)["fused"][0])
            cache.advance(len(part))
        return np.concatenate(fused)
