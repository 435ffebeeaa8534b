"""What the graphs of an image model are calibrated and verified on, as their inputs: pictures and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgevlm_export.calibration_images import calibration_images, golden_images
from edgevlm_export.families.family import ImageGraph, ImageRecipe
from edgevlm_runtime.engines import Array
from edgevlm_runtime.image import Pixels, load_image
from edgevlm_runtime.manifest import ImageSpec
from edgevlm_runtime.parts import needed
from edgevlm_runtime.preprocess import prepare_image
from edgevlm_runtime.text_encoder import token_ids
from edgevlm_runtime.tokenizer import TextTokenizer

Inputs: TypeAlias = Mapping[str, Array]

GOLDEN_TEXTS = (
    "a photo of a cat.",
    "three red circles and a blue square",
    "a receipt from a supermarket, folded twice",
    "an empty street at night",
    "handwritten digits",
    "a bicycle that leans on the wall of an old brick house while it rains",
)
_CALIBRATION_TEXTS = (
    "a dog",
    "a photo of the sea at sunset.",
    "two people who sit at a table and drink coffee",
    "a yellow taxi",
    "a page of a newspaper with a large headline and small print below it",
    "green apples in a bowl",
    "the inside of a train, seen from the last row",
    "a screenshot of a spreadsheet",
)


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Pictures and sentences of one export. `golden` are encoded image files, none of which is calibrated on."""

    recipe: ImageRecipe
    calibration: tuple[Pixels, ...]
    golden: tuple[bytes, ...]

    @classmethod
    def collect(cls, recipe: ImageRecipe, folder: Path | None) -> Samples:
        """Images of a folder, drawn ones without it; raises as `calibration_images`."""
        return cls(recipe=recipe, calibration=tuple(calibration_images(folder)), golden=tuple(golden_images(folder)))

    def to_calibrate(self, graph: ImageGraph) -> list[Inputs]:
        """Inputs of single calls, with a first axis of 1."""
        if graph.role == "text":
            return [self._texts(graph, (text,)) for text in _CALIBRATION_TEXTS]
        return [_images(self._spec, graph, (pixels,)) for pixels in self.calibration]

    def to_verify(self, graph: ImageGraph) -> Inputs:
        """All golden images, or sentences, in one call."""
        if graph.role == "text":
            return self._texts(graph, GOLDEN_TEXTS)
        return _images(self._spec, graph, tuple(map(load_image, self.golden)))

    @property
    def _spec(self) -> ImageSpec:
        return needed(self.recipe.parts.image, "image")

    def _texts(self, graph: ImageGraph, texts: Sequence[str]) -> Inputs:
        tokenizer = TextTokenizer(needed(self.recipe.tokenizer, "tokenizer"), frozenset())
        return {graph.inputs[0].name: token_ids(needed(self.recipe.parts.text, "text"), tokenizer, texts)}


def _images(spec: ImageSpec, graph: ImageGraph, images: Sequence[Pixels]) -> Inputs:
    return {graph.inputs[0].name: np.stack([prepare_image(pixels, spec) for pixels in images])}
