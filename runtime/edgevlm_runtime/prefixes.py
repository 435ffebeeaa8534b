"""What questions without an image begin with, read once: a system's words, or a single mark."""

from __future__ import annotations

import threading

from edgevlm_runtime.decoder import Decoder
from edgevlm_runtime.kv_cache import KVCache
from edgevlm_runtime.prompts import Prompt


class Prefixes:
    """Caches of one decoder that hold the prefixes of its prompts, each read when it is first needed.

    Threads may share it. There are as many as a manifest has templates, and each holds nothing but its prefix.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._caches: dict[tuple[int, ...], KVCache] = {}
        self._reading = threading.Lock()

    def begin(self, prompt: Prompt) -> tuple[KVCache, Prompt]:
        """A new cache that holds the prompt's prefix, and what of the prompt is left to read.

        All of it is left where two calls would round otherwise than one, as with a cache of 8 bits, and where it does
        not fit, as whoever reads it finds. Raises EngineError as `Decoder.run`.
        """
        fits = len(prompt.ids) <= self._decoder.context
        if not (prompt.prefix and fits and self._decoder.continues_exactly):
            return self._decoder.new_cache(), prompt
        # A copy, always: unlike an image's, it costs less than the memory that an answer leaves in the cache it used.
        cache = self._read(prompt.prefix).fork(prompt.n_prefix)
        return cache, Prompt(ids=prompt.ids[prompt.n_prefix :])

    def _read(self, ids: tuple[int, ...]) -> KVCache:
        with self._reading:
            if ids not in self._caches:
                cache = self._decoder.new_cache()
                self._decoder.run(self._decoder.embed(ids), cache)
                self._caches[ids] = cache
            return self._caches[ids]
