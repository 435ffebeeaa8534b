"""Who guesses the tokens of a model's answers: a look at what was said before, and a smaller model if there is one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from edgevlm_runtime.decoder import Session
from edgevlm_runtime.encoded import EncodedImage
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.manifest import Manifest
from edgevlm_runtime.options import GenerateOptions
from edgevlm_runtime.prompts import Prompt
from edgevlm_runtime.speculate import Guesser, PromptLookup, may_guess
from edgevlm_runtime.streams import Checkpoint


class Drafter(Protocol):
    """What is asked of the smaller model."""

    def encode(
        self, image: Pixels, *, max_crops: int | None = None, checkpoint: Checkpoint | None = None
    ) -> EncodedImage:
        """See `Model.encode`."""
        ...

    def drafting(self, image: EncodedImage | None, prompt: Prompt) -> AbstractContextManager[Guesser]:
        """Guess how another model answers a prompt about an image that this one has encoded."""
        ...

    def close(self) -> None:
        """See `Model.close`."""
        ...


class Guessers:
    """The guessers of one model; threads may share it."""

    def __init__(self, open_draft: Callable[[], Drafter] | None) -> None:
        """`open_draft` opens the smaller model, when it is first needed."""
        self._open_draft = open_draft
        self._draft: Drafter | None = None
        self._opening = threading.Lock()

    def look(self, encoded: EncodedImage, pixels: Pixels, max_crops: int | None, checkpoint: Checkpoint | None) -> None:
        """Let the smaller model see an image as well, as `Model.encode` would."""
        if encoded.draft is None and (draft := self._drafter()) is not None:
            encoded.draft = draft.encode(pixels, max_crops=max_crops, checkpoint=checkpoint)

    @contextmanager
    def of(self, session: Session, prompt: Prompt, options: GenerateOptions) -> Iterator[tuple[Guesser, ...]]:
        """Those of one answer, to be asked in turn; none where guesses are of no use."""
        allowed = may_guess(session, options)
        lookup = (PromptLookup(prompt.ids, options.lookup),) if allowed and options.lookup > 0 else ()
        if not allowed or (drafter := self._drafter()) is None:
            yield lookup
            return
        with drafter.drafting(None if session.image is None else session.image.draft, prompt) as draft:
            yield (*lookup, draft)

    def close(self) -> None:
        """Close the smaller model."""
        if self._draft is not None:
            self._draft.close()

    def _drafter(self) -> Drafter | None:
        if self._open_draft is None:
            return None
        with self._opening:
            if self._draft is None:
                self._draft = self._open_draft()
            return self._draft


def check_draft(draft: Manifest, model: Manifest) -> None:
    """Refuse a model that can not guess for another.

    Raises:
        InvalidOption: its tokenizer is another one.
    """
    digest = _tokenizer_hash(draft)
    if digest is None or digest != _tokenizer_hash(model):
        raise InvalidOption(f"{draft.name} can not be a draft for {model.name}: their tokenizers differ")


def _tokenizer_hash(manifest: Manifest) -> str | None:
    return None if manifest.tokenizer is None else manifest.files[manifest.tokenizer].sha256
