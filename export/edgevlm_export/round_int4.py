"""Before int4: matrices that read text rounded one after the other, on the inputs that the rounded ones before leave.

The original runs over images and conversations, layer by layer as always; each matrix is rounded when its inputs are
known, and the rest of the model runs on with what its codes stand for. No more than one matrix is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgevlm_export.calibration_images import calibration_images
from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.families.family import Recipe
from edgevlm_export.int4 import Int4Matrices, StoredMatrices, quantize_int4
from edgevlm_export.modules.layers import Linear
from edgevlm_export.quantize import Outliers, policy_of, read_float32
from edgevlm_export.reference import Reference, family_part
from edgevlm_export.scene import conversations
from edgevlm_export.weights import Weights
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.preprocess import make_crops
from edgevlm_runtime.probe import observe_image
from edgevlm_runtime.prompts import Prompts
from edgevlm_runtime.tokenizer import TextTokenizer

_N_IMAGES = 3  # one is too few to tell channels apart; more cost more time than they bring
_MAX_CROPS = 1


class _Rounder:
    """Rounds each of the named matrices when its Linear is called, and stands in for the weights from then on."""

    def __init__(self, weights: Weights, outliers: Outliers, folder: Path, rounded: Callable[[], None]) -> None:
        self._weights = weights
        self._outliers = outliers
        self._rounded = rounded
        self.matrices = StoredMatrices(folder)

    def weights(self) -> Weights:
        """The parameters, those that are rounded already as their codes stand for."""
        shapes = {name: self._weights.shape(name) for name in self._weights}
        return Weights(
            {name: LazyWeight(origin=name, shape=shapes[name], read=partial(self._read, name)) for name in shapes}
        )

    def watch(self, module: nn.Module, names: frozenset[str]) -> nn.Module:
        """Look on whenever a Linear with one of these matrices runs."""
        for name, layer in module.named_modules():
            if f"{name}.weight" in names:
                layer.register_forward_pre_hook(partial(self._see, f"{name}.weight"))
        return module

    def _see(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        if name in self.matrices:
            return
        x: Tensor = inputs[0].flatten(end_dim=-2)
        if not torch.isfinite(x.square().sum()):
            raise CheckpointError(
                f"tensor {name}: what it is multiplied with is not finite; is the checkpoint damaged?"
            )
        weight, channels = torch.tensor(read_float32(self._weights, name)), self._channels(name)
        kept = torch.ones(x.shape[1]).index_fill_(0, torch.tensor(channels, dtype=torch.long), 0.0)
        self.matrices.add(name, quantize_int4(weight * kept, x * kept))
        self._rounded()

    def _read(self, name: str) -> Tensor:
        stored = self._weights.stored(name)
        if name not in self.matrices:
            return stored
        restored, channels = self.matrices[name].restore(stored.shape[1]), self._channels(name)
        restored[:, channels] = stored[:, channels].float()
        return restored

    def _channels(self, name: str) -> list[int]:
        """The input channels that are kept in float32."""
        return list(self._outliers.get(name, ()))


def int4_names(recipe: Recipe) -> frozenset[str]:
    """The matrices that an int4 bundle has in 4 bits.

    Raises:
        ExportError: the family has no decoder.
    """
    parts = {"vision": None, "decoder": family_part(recipe.decoder, "decoder"), "prefuse": recipe.fuser}
    return frozenset(
        name
        for request in recipe.graphs
        if request.role in parts
        for name in _matrices((parts[request.role] or request.build)(recipe.build()))
        if policy_of(request, "int4")(name) == "int4"
    )


def _matrices(module: nn.Module) -> Iterator[str]:
    return (f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, Linear))


def round_matrices(
    recipe: Recipe, outliers: Outliers, folder: Path, rounded: Callable[[], None] = lambda: None
) -> Int4Matrices:
    """Round the matrices of `int4_names` into files of `folder`; `rounded` is called after each.

    Raises:
        ExportError: the family lacks what calibration needs.
        CheckpointError: values of the checkpoint are not finite.
    """
    spec = family_part(recipe.parts.prompt, "prompt")
    tokenizer = TextTokenizer(family_part(recipe.tokenizer, "tokenizer"))
    samples = tuple(conversations(spec, Prompts(spec, tokenizer), tokenizer))
    rounder, names = _Rounder(recipe.weights, outliers, folder, rounded), int4_names(recipe)
    watched = replace(recipe, build=lambda: rounder.watch(recipe.build(), names), weights=rounder.weights())
    reference, image = Reference(watched), family_part(recipe.parts.image, "image")
    pictures = calibration_images(None)[:_N_IMAGES]
    if any(request.four_bits for request in recipe.graphs):
        # All at once: a matrix is rounded when it is first called.
        crops = [make_crops(pixels, image, _MAX_CROPS)[0] for pixels in pictures]
        reference.open("vision").run({"crops": np.concatenate(crops)})
    images = [observe_image(image, reference.open, pixels, _MAX_CROPS).tokens for pixels in pictures]
    reference.follow_each(images, samples)
    return rounder.matrices
