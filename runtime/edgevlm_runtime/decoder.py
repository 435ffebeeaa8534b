"""Embeddings and a cache to logits and a hidden state: one graph call, the same for prefill and single steps.

What a token may look at is decided by the bias that is built here; positions are those of the cache. Nothing here
knows of text, sampling or images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from edgevlm_runtime.embedding import read_rows
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.engines import Array, FloatArray, Graph, StatefulGraph
from edgevlm_runtime.errors import DamagedBundle, EngineError
from edgevlm_runtime.kv_cache import KVCache, attention_bias
from edgevlm_runtime.manifest import CacheSpec
from edgevlm_runtime.state_cache import open_cache


@dataclass(frozen=True, kw_only=True)
class Step:
    """What the decoder says after its last token: float32 logits (vocab,), hidden (1, dim) before the last norm."""

    logits: FloatArray
    hidden: FloatArray


class Decoder:
    """The `decoder` graph and its embedding table, see `embedding`. Shared by threads."""

    def __init__(self, graph: Graph, embedding: Array, spec: CacheSpec, context: int | None = None) -> None:
        """`context` limits the positions of its caches; None is as many as the spec says."""
        self._graph = graph
        self._embedding = embedding
        self._spec = spec
        self.context = spec.max_context if context is None else context
        self._no_bias = np.zeros((1, 1, 1, spec.max_context), np.float32)

    def new_cache(self) -> KVCache:
        """An empty cache for this decoder."""
        return open_cache(self._graph, self._spec, self.context)

    @property
    def forgets_exactly(self) -> bool:
        """Whether a rollback of its caches leaves no trace: what an engine hides in its state still moves roundings."""
        return not isinstance(self._graph, StatefulGraph)

    @property
    def continues_exactly(self) -> bool:
        """Whether tokens read in two calls give what they give in one: 8 bits are rounded to only between calls."""
        kept = self._graph.state_dtype if isinstance(self._graph, StatefulGraph) else np.dtype(self._spec.dtype)
        return kept.itemsize > 1

    def knows(self, token: int) -> bool:
        """Whether a token id has an embedding."""
        return 0 <= token < len(self._embedding)

    def embed(self, token_ids: Sequence[int]) -> FloatArray:
        """Token ids to float32 embeddings (tokens, dim).

        Raises:
            DamagedBundle: an id has no row in the table, so the tokenizer is not this model's.
        """
        if stray := [token for token in token_ids if not self.knows(token)]:
            raise DamagedBundle(
                f"token id {stray[0]} is not in the embedding table of {len(self._embedding)} rows; "
                "export the model again"
            )
        return read_rows(self._embedding, token_ids)

    def run(self, embeddings: FloatArray, cache: KVCache, *, bidirectional: bool = False) -> Step:
        """Append embeddings (tokens, dim) to the cache and return the step after the last of them.

        Tokens see the whole cache and what comes before them in this call; `bidirectional` ones see all of this call.

        Raises:
            ContextOverflow: the cache has too few positions left; nothing was run.
            EngineError: the graph failed, or gave values that are not finite.
        """
        return self._run(embeddings, cache, (len(embeddings) - 1,), bidirectional=bidirectional)[0]

    def run_each(self, embeddings: FloatArray, cache: KVCache) -> list[Step]:
        """`run`, and give the step after each of the tokens. Several at once round otherwise than one by one."""
        return self._run(embeddings, cache, range(len(embeddings)), bidirectional=False)

    def _run(
        self, embeddings: FloatArray, cache: KVCache, positions: Sequence[int], *, bidirectional: bool
    ) -> list[Step]:
        """The steps after the tokens at some positions of `embeddings`."""
        n_tokens = len(embeddings)
        cache.require(n_tokens)
        total = cache.length + n_tokens
        inputs: dict[str, Array] = {
            "embeddings": embeddings[None],
            "attention_bias": self._bias(cache.length, n_tokens, bidirectional),
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "logit_positions": np.array(positions, np.int64),
        }
        outputs = cache.run(self._graph, inputs)
        cache.advance(n_tokens)
        logits, hidden = outputs["logits"], outputs["hidden"]
        if not np.isfinite(hidden).all():
            raise EngineError(f"decoder: hidden state at position {total - 1} is not finite; verify the bundle")
        return [Step(logits=logits[row], hidden=hidden[row : row + 1]) for row in range(len(positions))]

    def _bias(self, n_past: int, n_tokens: int, bidirectional: bool) -> FloatArray:
        """Float32 (1, 1, tokens, past + tokens): 0 where a token may look, MASKED where not."""
        if n_tokens == 1:
            return self._no_bias[..., : n_past + 1]
        return attention_bias(n_past, n_tokens, bidirectional=bidirectional)


class Session:
    """One question on its way through the decoder: its cache, and the time it took.

    `n_steps` are the tokens that were read one by one, or guessed right; `image` is what it is about.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, *, image: EncodedImage | None = None, image_ms: float = 0.0
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self.image = image
        self.image_tokens = 0 if image is None else len(image.embeddings)
        self.image_ms = image_ms
        self.prompt_tokens = 0
        self.prefill_ms = 0.0
        self.decode_ms = 0.0
        self.n_steps = 0
        self.n_guessed = 0
        self.n_accepted = 0

    @property
    def states(self) -> tuple[FloatArray, ...]:
        """As in `FusedFrames`; none without an image, and in models that do not fuse."""
        return () if self.image is None else self.image.states

    @property
    def left(self) -> int:
        """Positions that are still free."""
        return self._cache.left

    def require(self, n_tokens: int) -> None:
        """Raise ContextOverflow where `n_tokens` more do not fit."""
        self._cache.require(n_tokens)

    def prefill(self, embeddings: FloatArray) -> Step:
        """Run a prompt (tokens, dim); raises as `Decoder.run`."""
        start = time.perf_counter()
        step = self._decoder.run(embeddings, self._cache)
        self.prefill_ms += 1e3 * (time.perf_counter() - start)
        self.prompt_tokens += len(embeddings)
        return step

    def step(self, embedding: FloatArray) -> Step:
        """Run one more token (1, dim); raises as `Decoder.run`."""
        with self.decoding():
            step = self._decoder.run(embedding, self._cache)
        self.n_steps += len(embedding)
        return step

    def step_each(self, embeddings: FloatArray) -> list[Step]:
        """Run more tokens (tokens, dim) at once; see `Decoder.run_each`."""
        with self.decoding():
            steps = self._decoder.run_each(embeddings, self._cache)
        self.n_steps += len(embeddings)
        return steps

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Count the time that is spent within as decoding."""
        start = time.perf_counter()
        yield
        self.decode_ms += 1e3 * (time.perf_counter() - start)

    def rollback(self, n_tokens: int) -> None:
        """Forget the last `n_tokens` that were read in steps; see `forgets_exactly`."""
        self._cache.rollback(self._cache.length - n_tokens)
        self.n_steps -= n_tokens

    @property
    def forgets_exactly(self) -> bool:
        """See `Decoder.forgets_exactly`."""
        return self._decoder.forgets_exactly

    def knows(self, token: int) -> bool:
        """See `Decoder.knows`."""
        return self._decoder.knows(token)

    def embed(self, token_ids: Sequence[int]) -> FloatArray:
        """Token ids to embeddings; see `Decoder.embed`."""
        return self._decoder.embed(token_ids)
