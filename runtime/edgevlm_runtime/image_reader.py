"""Any image, or several as frames, to what a decoder can be asked about: looked up, or encoded and read."""

from __future__ import annotations

import threading

from edgevlm_runtime.drafting import Guessers
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.frames import Frames, FramesSource, is_frames, open_frames, single
from edgevlm_runtime.graphs import Graphs
from edgevlm_runtime.image import ImageSource, load_image
from edgevlm_runtime.image_cache import ImageCache
from edgevlm_runtime.kinds import IMAGE_ROLES
from edgevlm_runtime.manifest import Manifest
from edgevlm_runtime.parts import ReadImage, TextParts, needed
from edgevlm_runtime.preprocess import select_tiling
from edgevlm_runtime.streams import Checkpoint
from edgevlm_runtime.vision import VisionTower, open_tower


class ImageReader:
    """The image half of a model that writes text. Threads may share it."""

    def __init__(
        self,
        manifest: Manifest,
        graphs: Graphs,
        parts: TextParts,
        images: ImageCache,
        guessers: Guessers,
        *,
        low_memory: bool,
    ) -> None:
        """`images` remembers what was read, `guessers` look at it too; `low_memory` as in LoadOptions.

        Raises:
            DamagedBundle: the manifest does not say what images are like.
        """
        self._name = manifest.name
        self._spec = needed(manifest.image, "image")
        self._graphs = graphs
        self._parts = parts
        self._images = images
        self._guessers = guessers
        self._low_memory = low_memory
        self._tower: VisionTower | None = None
        self._opening = threading.Lock()

    def read(
        self, image: ImageSource | FramesSource, max_crops: int | None, checkpoint: Checkpoint | None
    ) -> EncodedImage:
        """See `Model.encode`."""
        if self._spec.frames is not None and is_frames(image):
            return self._read_frames(open_frames(image, self._spec.frames), checkpoint)
        source = single(image, self._name)
        if self._tower is None and self._images.is_empty:
            self._graphs.prefetch(*IMAGE_ROLES)  # while the image is decoded
        pixels = load_image(source)

        def encode(key: str) -> EncodedImage:
            tokens = self._open_tower().encode(pixels, max_crops, checkpoint)
            self._release_tower()
            return self._encoded(self._parts.read_image([tokens]), pixels.shape, key)

        grid = select_tiling(pixels.shape[0], pixels.shape[1], self._spec, max_crops)
        encoded = self._images.get(pixels, grid, self._parts.decoder.new_cache, encode)
        self._guessers.look(encoded, pixels, max_crops, checkpoint)
        return encoded

    def _read_frames(self, frames: Frames, checkpoint: Checkpoint | None) -> EncodedImage:
        """Read frames as they are decoded."""
        shape = next(frames.read()).shape
        read = self._parts.read_image(self._open_tower().encode_frames(frames, checkpoint))
        self._release_tower()
        return self._encoded(read, shape)

    def _encoded(self, read: ReadImage, shape: tuple[int, ...], key: str = "") -> EncodedImage:
        return EncodedImage(
            owner=self._images.owner,
            embeddings=read.tokens,
            cache=read.cache,
            size=(shape[0], shape[1]),
            states=read.states,
            key=key,
        )

    def _open_tower(self) -> VisionTower:
        with self._opening:
            if self._tower is None:
                self._tower = open_tower(self._spec, self._graphs)
            return self._tower

    def _release_tower(self) -> None:
        """Close the image encoder where memory is short."""
        if self._low_memory:
            with self._opening:
                self._tower = None
                self._graphs.release(IMAGE_ROLES)
