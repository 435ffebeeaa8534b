"""Questions to a bundle that have a given number of tokens, with all that its prompts put around them."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.parts import needed
from edgevlm_runtime.prompts import Prompts, control_ids
from edgevlm_runtime.tokenizer import TextTokenizer

_MARK = "?"  # a token of its own


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A start and question marks; about an image and without one there are so many tokens beside the marks."""

    start: str
    about_image: int
    alone: int

    def of(self, n_tokens: int, *, image: bool) -> str:
        """The question whose prompt has so many tokens.

        Raises:
            RuntimeError: the prompt alone has as many.
        """
        n_marks = n_tokens - (self.about_image if image else self.alone)
        if n_marks < 1:
            raise RuntimeError(f"no question has {n_tokens} tokens: the prompt takes {n_tokens - n_marks}")
        return self.start + n_marks * _MARK


def questions_of(bundle: Bundle) -> Questions:
    """Those with the shortest prompt: where the model knows tags, with one."""
    spec = needed(bundle.manifest.prompt, "prompt")
    path = bundle.path(needed(bundle.manifest.tokenizer, "tokenizer"))
    prompts = Prompts(spec, TextTokenizer(path, control_ids(spec)))
    start = spec.tags[0] if spec.tags else ""
    about_image, alone = (len(prompts.query(start + _MARK, image=image).ids) - 1 for image in (True, False))
    return Questions(start=start, about_image=about_image, alone=alone)
