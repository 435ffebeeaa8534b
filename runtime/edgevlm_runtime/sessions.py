"""Where a prompt meets what it is about: sessions that go on from an image or, without one, from a prompt's prefix."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

from edgevlm_runtime.decoder import Session
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.frames import FramesSource
from edgevlm_runtime.image import ImageSource
from edgevlm_runtime.image_cache import ImageCache
from edgevlm_runtime.image_reader import ImageReader
from edgevlm_runtime.parts import TextParts
from edgevlm_runtime.prompts import Prompt
from edgevlm_runtime.streams import Checkpoint

AnyImage: TypeAlias = ImageSource | FramesSource | EncodedImage


@dataclass(frozen=True, kw_only=True)
class Sessions:
    """Opens the sessions of one model; threads may share it. `images` remembers what `reader` reads."""

    parts: TextParts
    reader: ImageReader
    images: ImageCache

    @contextmanager
    def open(
        self, image: AnyImage | None, prompt: Prompt, max_crops: int | None = None, checkpoint: Checkpoint | None = None
    ) -> Iterator[tuple[Session, FloatArray]]:
        """A session, and the embeddings (tokens, dim) of what it has yet to read of a prompt.

        `max_crops` and `checkpoint` as in `Model.encode`, for an image that is not encoded yet. The image is as before
        afterwards.

        Raises:
            InvalidOption: the image was encoded by another model.
        """
        if image is None:
            yield self._without_image(prompt)
            return
        start = time.perf_counter()
        encoded = image if isinstance(image, EncodedImage) else self.reader.read(image, max_crops, checkpoint)
        image_ms = 0.0 if encoded is image else 1e3 * (time.perf_counter() - start)
        if encoded.owner is not self.images.owner:
            raise InvalidOption("the image was encoded by another model; encode it with this one")
        with encoded.borrow() as cache:
            session = Session(self.parts.decoder, cache, image=encoded, image_ms=image_ms)
            yield session, self._embed(session, prompt)
        self.images.save(encoded)  # reached only when the answer is complete

    def _without_image(self, prompt: Prompt) -> tuple[Session, FloatArray]:
        """See `open`; what was read before counts as read for this prompt."""
        start = time.perf_counter()
        cache, rest = self.parts.prefixes.begin(prompt)
        session = Session(self.parts.decoder, cache)
        session.prompt_tokens = cache.length
        session.prefill_ms = 1e3 * (time.perf_counter() - start)
        return session, self._embed(session, rest)

    def _embed(self, session: Session, prompt: Prompt) -> FloatArray:
        """Mixed with the session's image where the model does that, which is part of its prefill."""
        start = time.perf_counter()
        if session.states:
            session.require(len(prompt.ids))
        embeddings = self.parts.embed(prompt, session.states)
        session.prefill_ms += 1e3 * (time.perf_counter() - start)
        return embeddings
