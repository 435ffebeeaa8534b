"""An image that was encoded once and can be asked many times."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgevlm_runtime.engines import Array, FloatArray
from edgevlm_runtime.kv_cache import KVCache


class EncodedImage:
    """Image tokens and, for a model with a decoder, the keys and values that it keeps of them; or of a video's frames.

    It belongs to the model that encoded it and may be asked by several threads at once.
    `embeddings` float32 (tokens, dim), read-only, are the image tokens; `width` and `height` are pixels of the upright
    image, or of the first frame.
    """

    def __init__(
        self,
        *,
        owner: object,
        embeddings: FloatArray,
        cache: KVCache,
        size: tuple[int, int],
        states: tuple[FloatArray, ...] = (),
        key: str = "",
    ) -> None:
        """`cache` holds the image and nothing else; `states` as in `FusedFrames`.

        `key` is what an image cache knows it by, none for what is not remembered.
        """
        self.owner = owner
        self.key = key
        self.draft: EncodedImage | None = None  # the same image for the model that guesses
        self.embeddings = embeddings
        embeddings.flags.writeable = False  # others may have the same image
        self.height, self.width = size
        self.states = states
        self._cache = cache
        self._prefix = cache.length
        self._busy = threading.Lock()

    def __repr__(self) -> str:
        return f"EncodedImage({self.width} x {self.height} pixels, {len(self.embeddings)} tokens)"

    @property
    def positions(self) -> int:
        """How many positions of the decoder's cache the image takes."""
        return self._prefix

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the image takes, without what its cache has room for."""
        return self.embeddings.nbytes + self._cache.nbytes(self._prefix) + sum(state.nbytes for state in self.states)

    def blocks(self) -> list[Array]:
        """All that the image is made of, as contiguous arrays; questions that are being answered change none of it."""
        return [self.embeddings, *self.states, *self._cache.blocks(self._prefix)]

    @contextmanager
    def borrow(self) -> Iterator[KVCache]:
        """A cache that holds the image, to go on from; whatever happens, the image is as before afterwards.

        The image's own cache serves one question at a time; while it is busy, others get a copy.
        """
        # Not a with statement: a stream may be closed by another thread than the one that started it.
        if not self._busy.acquire(blocking=False):
            yield self._cache.fork(self._prefix)
            return
        try:
            yield self._cache
        finally:
            self._cache.rollback(self._prefix)
            self._busy.release()
