"""What is asked, in words, to the token ids that ask it, with the templates of the manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from edgevlm_runtime.errors import DamagedBundle, InvalidOption, UnsupportedTask
from edgevlm_runtime.manifest import PromptSpec, Template
from edgevlm_runtime.tokenizer import TextTokenizer

SpatialRef: TypeAlias = tuple[float, float] | tuple[float, float, float, float]
"""A point (x, y) or a box (x_min, y_min, x_max, y_max), as fractions of the image."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids, and the positions among them whose embeddings are those of coordinates or of (width, height).

    The first `n_prefix` ids are those that all prompts of a template without an image begin with; 0 with an image.
    """

    ids: tuple[int, ...]
    coordinates: tuple[tuple[int, float], ...] = ()
    sizes: tuple[tuple[int, tuple[float, float]], ...] = ()
    n_prefix: int = 0

    @property
    def prefix(self) -> tuple[int, ...]:
        """The first `n_prefix` ids."""
        return self.ids[: self.n_prefix]


class Prompts:
    """The prompts of one model.

    Raises:
        DamagedBundle: placeholders of references that are not x and y, or x, y and size.
    """

    def __init__(self, spec: PromptSpec, tokenizer: TextTokenizer) -> None:
        if len(spec.spatial_point) not in (0, 2) or len(spec.spatial_box) not in (0, 3):
            raise DamagedBundle("manifest.json: prompt.spatial_point must have 2 ids and spatial_box 3, or none")
        self._spec = spec
        self._tokenizer = tokenizer

    def caption(self, length: str) -> Prompt:
        """Ask for a caption.

        Raises:
            InvalidOption: the model has no captions of that length.
        """
        if length not in self._spec.captions:
            raise InvalidOption(f"length is {length!r}, but must be one of: {', '.join(self._spec.captions)}")
        return Prompt(ids=self._spec.captions[length])

    def query(
        self, question: str, refs: Sequence[SpatialRef] = (), *, image: bool = True, reasoning: bool = False
    ) -> Prompt:
        """Ask a question about places `refs` in the image; without an image the prompt is the whole sequence.

        A question that begins with one of the model's tags goes into the template for these.

        Raises:
            InvalidOption: references without an image, or ones that are not fractions of it.
            UnsupportedTask: the model knows no reasoning or no references.
        """
        if refs and not image:
            raise InvalidOption("spatial references need an image that they refer to")
        if not image and not reasoning and self._spec.text_query is not None:
            return _alone(self._framed(self._spec.text_query, question), len(self._spec.text_query.prefix))
        template = self._reasoning_template() if reasoning else self._template(question)
        prefix = template.prefix if image else (self._spec.bos_id, *template.prefix)
        places = [self._place(ref) for ref in refs]
        words = self._tokenizer.encode(self._spec.question_prefix + question)
        prompt = _join(prefix, places, words, template.suffix)
        return prompt if image else _alone(prompt, len(prefix))

    def locate(self, template: Template, name: str) -> Prompt:
        """Ask for all objects of a name.

        Raises:
            InvalidOption: the name is blank.
        """
        if not name.strip():
            raise InvalidOption("the object's name is empty; say what to look for")
        return self._framed(template, self._spec.object_prefix + name)

    def _framed(self, template: Template, words: str) -> Prompt:
        return Prompt(ids=(*template.prefix, *self._tokenizer.encode(words), *template.suffix))

    def _template(self, question: str) -> Template:
        """The template of a question about an image."""
        is_tagged = question.startswith(self._spec.tags)
        return self._spec.tagged if is_tagged and self._spec.tagged is not None else self._spec.query

    def _reasoning_template(self) -> Template:
        if self._spec.reasoning is None:
            raise UnsupportedTask("this model does not reason before it answers; ask without reasoning")
        return self._spec.reasoning.template

    def _place(self, ref: SpatialRef) -> Prompt:
        """The placeholders of one reference: x, y and, for a box, its size."""
        if len(ref) not in (2, 4) or not all(math.isfinite(value) and -1 <= value <= 2 for value in ref):
            raise InvalidOption(f"spatial reference {ref!r}: give (x, y) or (x_min, y_min, x_max, y_max) in fractions")
        ids = self._spec.spatial_point if len(ref) == 2 else self._spec.spatial_box
        if not ids:
            raise UnsupportedTask("this model takes no spatial references; ask in words")
        if len(ref) == 2:
            return Prompt(ids=ids, coordinates=tuple(enumerate(ref)))
        x_min, y_min, x_max, y_max = ref
        if x_max < x_min or y_max < y_min:
            raise InvalidOption(f"spatial reference {ref!r}: a box is (x_min, y_min, x_max, y_max)")
        center = ((x_min + x_max) / 2, (y_min + y_max) / 2)
        return Prompt(ids=ids, coordinates=tuple(enumerate(center)), sizes=((2, (x_max - x_min, y_max - y_min)),))


def before_image(spec: PromptSpec) -> tuple[int, ...]:
    """The ids before an image's tokens."""
    return (spec.bos_id,) if spec.before_image is None else spec.before_image


def control_ids(spec: PromptSpec) -> Iterator[int]:
    """Every token id that the manifest uses to steer the model; a user's text must not contain any."""
    yield from (spec.bos_id, spec.eos_id, *spec.suppressed_ids, *spec.spatial_point, *spec.spatial_box)
    yield from (*spec.stop_ids, *(spec.before_image or ()))
    for ids in spec.captions.values():
        yield from ids
    templates = [spec.query, spec.detect, spec.point, spec.text_query, spec.tagged]
    if (thinking := spec.reasoning) is not None:
        templates.append(thinking.template)
        yield from (thinking.answer_id, thinking.coordinate_id, thinking.ground_start_id, thinking.ground_end_id)
    for template in templates:
        if template is not None:
            yield from (*template.prefix, *template.suffix)


def _alone(prompt: Prompt, n_prefix: int) -> Prompt:
    """A prompt without an image; at least its last id is not of the prefix, so that something is left to run."""
    return replace(prompt, n_prefix=min(n_prefix, len(prompt.ids) - 1))


def _join(prefix: tuple[int, ...], places: Sequence[Prompt], words: tuple[int, ...], suffix: tuple[int, ...]) -> Prompt:
    ids = list(prefix)
    coordinates: list[tuple[int, float]] = []
    sizes: list[tuple[int, tuple[float, float]]] = []
    for place in places:
        coordinates += [(len(ids) + position, value) for position, value in place.coordinates]
        sizes += [(len(ids) + position, size) for position, size in place.sizes]
        ids += place.ids
    return Prompt(ids=(*ids, *words, *suffix), coordinates=tuple(coordinates), sizes=tuple(sizes))
