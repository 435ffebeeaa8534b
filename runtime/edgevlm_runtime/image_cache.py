"""Which encoded images are remembered: the last ones in memory and, where there is a store, on disk.

An image is known by its decoded pixels, the grid of its crops, and all that its encoding depends on: the bundle (so
preprocessing, weights and precision), the engine with its version and threads, the layout of the decoder's cache.
Videos are not remembered: to know one all of it would have to be decoded before its first frame is encoded.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from math import prod

import numpy as np

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.engines import Array, Engine, FloatArray
from edgevlm_runtime.engines.choice import engine_version
from edgevlm_runtime.engines.threads import thread_count
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.image_file import FORMAT, StoredImage
from edgevlm_runtime.image_store import ImageStore, default_store
from edgevlm_runtime.kv_cache import KVCache
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.prefuse import state_shape
from edgevlm_runtime.preprocess import CropGrid

_log = logging.getLogger(__name__)


class ImageCache:
    """Encoded images of one model by key; threads may share it. By default nothing is remembered.

    `owner` stands for the model; a reference to the model itself would keep it in memory.
    """

    def __init__(self, bundle: Bundle, engine: str, *, memory_bytes: int = 0, store: ImageStore | None = None) -> None:
        """`engine` says all of the engine that numbers depend on. At most `memory_bytes` are kept in memory."""
        self.owner = object()
        self._bundle = bundle
        self._engine = engine
        self._is_used = memory_bytes > 0 or store is not None
        self._memory = _Memory(memory_bytes)
        self._store = store
        self._writer: threading.Thread | None = None
        self._starting = threading.Lock()

    @property
    def is_empty(self) -> bool:
        """Whether the next image is surely not known."""
        return self._store is None and self._memory.is_empty

    def get(
        self, pixels: Pixels, grid: CropGrid, new_cache: Callable[[], KVCache], encode: Callable[[str], EncodedImage]
    ) -> EncodedImage:
        """The image of uint8 (height, width, 3) pixels in that grid; `encode` makes it, with its key, where needed.

        `new_cache` makes an empty one, to read an image into.
        """
        if not self._is_used:
            return encode("")
        cache = new_cache()
        key = self._key(pixels, grid, cache.layout)
        if (known := self._memory.get(key)) is not None:
            _log.info("image cache: found in memory")
            return known
        self._memory.make_room()
        return self._memory.add(self._read(key, cache) or encode(key))

    def save(self, image: EncodedImage) -> None:
        """Begin to write an image to the store, if there is one, unless it is there.

        Meant for when an answer is complete: before, it would take time from the answer.
        """
        if self._store is None or not image.key:
            return
        with self._starting:
            self._wait()  # one at a time: each keeps an image in memory
            if self._store.has(image.key):
                return
            # Not a daemon: at its exit the interpreter waits for the end.
            self._writer = threading.Thread(target=self._write, args=(self._store, image), name="image-cache")
            self._writer.start()

    def close(self) -> None:
        """Forget the images in memory, and wait for one that is being written."""
        self._memory.clear()
        with self._starting:
            self._wait()

    def _key(self, pixels: Pixels, grid: CropGrid, layout: str) -> str:
        about = (FORMAT, self._bundle.fingerprint, self._engine, layout, pixels.shape, grid.rows, grid.cols)
        digest = hashlib.sha256(repr(about).encode())
        digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()

    def _read(self, key: str, cache: KVCache) -> EncodedImage | None:
        if self._store is None:
            return None
        tokens: list[FloatArray] = []
        states: list[FloatArray] = []

        def room(stored: StoredImage) -> list[Array]:
            shape = self._state_shape(stored.fused_positions)
            # Before memory is taken for what a damaged header says.
            if (
                stored.positions > cache.spec.max_context
                or 4 * (stored.tokens * stored.dim + prod(shape)) > stored.data_bytes
            ):
                raise ValueError("its header's sizes do not fit")
            cache.require(stored.positions)
            tokens.append(np.empty((stored.tokens, stored.dim), np.float32))
            if stored.fused_positions:
                states.append(np.empty(shape, np.float32))
            return [*tokens, *states, *cache.room(stored.positions)]

        if (stored := self._store.read(key, room)) is None:
            return None
        cache.fill(stored.positions)
        size = (stored.height, stored.width)
        return EncodedImage(
            owner=self.owner, embeddings=tokens[0], cache=cache, size=size, states=tuple(states), key=key
        )

    def _state_shape(self, n_positions: int) -> tuple[int, ...]:
        """Of the keys and values that fusion keeps of an image."""
        fusion = self._bundle.manifest.fusion
        return (0,) if fusion is None else state_shape(fusion, n_positions)

    def _write(self, store: ImageStore, image: EncodedImage) -> None:
        blocks = image.blocks()
        stored = StoredImage(
            key=image.key,
            model=self._bundle.manifest.name,
            precision=self._bundle.manifest.precision,
            engine=self._engine,
            width=image.width,
            height=image.height,
            tokens=image.embeddings.shape[0],
            dim=image.embeddings.shape[1],
            positions=image.positions,
            data_bytes=sum(block.nbytes for block in blocks),
            fused_positions=image.states[0].shape[1] if image.states else 0,
        )
        store.write(stored, blocks)

    def _wait(self) -> None:
        if self._writer is not None:
            self._writer.join()
            self._writer = None


def open_image_cache(bundle: Bundle, engine: Engine, options: LoadOptions) -> ImageCache:
    """The cache that `options` ask for; raises as `default_store`."""
    return ImageCache(
        bundle,
        f"{engine_version(engine.name)}, {thread_count(options.threads)} threads",
        memory_bytes=0 if options.low_memory else options.image_memory_mb * 10**6,
        store=default_store() if options.image_cache else None,
    )


class _Memory:
    """The last used images whose sizes together are at most `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def is_empty(self) -> bool:
        return not self._images

    def get(self, key: str) -> EncodedImage | None:
        with self._lock:
            if key in self._images:
                self._images.move_to_end(key)
            return self._images.get(key)

    def add(self, image: EncodedImage) -> EncodedImage:
        with self._lock:
            known = self._images.setdefault(image.key, image)
            self._images.move_to_end(image.key)
            self._shrink(self._limit_bytes)
            return known

    def make_room(self) -> None:
        with self._lock:
            if self._images:
                last = next(reversed(self._images.values()))
                self._shrink(self._limit_bytes - last.nbytes)

    def clear(self) -> None:
        with self._lock:
            self._images.clear()

    def _shrink(self, limit_bytes: int) -> None:
        total = sum(image.nbytes for image in self._images.values())
        while self._images and total > limit_bytes:
            total -= self._images.popitem(last=False)[1].nbytes
