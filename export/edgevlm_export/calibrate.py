"""Before int8: which input channels of which matrices stand out so far that int8 would lose the others beside them,
and how far keys and values reach that are to be kept in 8 bits.

A block of activations shares one step, its largest magnitude over 127. A channel that reaches r times what channels
typically reach makes that step r times as coarse for its neighbors, and multiplies the rounding of its own weights by
r. So channels are compared by the largest magnitude that they reach over an image and conversations about it, in the
original in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm_export.families.family import Recipe
from edgevlm_export.modules.layers import Attention, Linear
from edgevlm_export.quantize import Calibration
from edgevlm_export.reference import Reference, family_part
from edgevlm_export.scene import conversations, draw_texture, region_inputs
from edgevlm_runtime.probe import observe_image
from edgevlm_runtime.prompts import Prompts
from edgevlm_runtime.tokenizer import TextTokenizer

N_PARTS = 3  # how often observe reports progress
MAX_CROPS = 1  # channels stand out in every crop
FACTOR = 8.0  # times the median channel: below, blocks cope
MOST = 1 / 32  # of a matrix's channels: more would not be outliers


class Peaks:
    """The largest magnitude so far of each input channel of each Linear, and of each query, key and value."""

    def __init__(self) -> None:
        self._inputs: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}

    def watch(self, module: nn.Module) -> nn.Module:
        """Look on whenever a Linear of the module runs."""
        for name, layer in module.named_modules():
            if isinstance(layer, Linear):
                layer.register_forward_pre_hook(partial(self._see_inputs, f"{name}.weight"))
            elif isinstance(layer, Attention):
                layer.qkv.register_forward_hook(partial(self._see_outputs, f"{name}.qkv.weight"))
        return module

    def found(self) -> Calibration:
        """The outlier channels of each matrix that has any, and the peaks of queries, keys and values."""
        channels = {name: _stand_out(peaks) for name, peaks in self._inputs.items()}
        return Calibration(
            outliers={name: some for name, some in channels.items() if some},
            peaks={name: peaks.numpy() for name, peaks in self._outputs.items()},
        )

    def _see_inputs(self, name: str, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        _raise_to(self._inputs, name, inputs[0])

    def _see_outputs(self, name: str, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        _raise_to(self._outputs, name, output)


def observe(recipe: Recipe, part_done: Callable[[], None] = lambda: None) -> Calibration:
    """Run the original, layer by layer, and see how large its activations are. `part_done` is called N_PARTS times.

    Raises:
        ExportError: the family lacks what calibration needs.
    """
    peaks = Peaks()
    reference = Reference(replace(recipe, build=lambda: peaks.watch(recipe.build())))
    spec = family_part(recipe.parts.prompt, "prompt")
    tokenizer = TextTokenizer(family_part(recipe.tokenizer, "tokenizer"))
    image = observe_image(family_part(recipe.parts.image, "image"), reference.open, draw_texture(), MAX_CROPS)
    part_done()
    steps = reference.follow(image.tokens, tuple(conversations(spec, Prompts(spec, tokenizer), tokenizer)))
    part_done()
    roles = {request.role: request for request in recipe.graphs}
    for role, values in region_inputs(steps.hidden).items():
        if role in roles:
            reference.open(role).run({roles[role].inputs[0].name: values})
    part_done()
    return peaks.found()


def _raise_to(peaks: dict[str, Tensor], name: str, values: Tensor) -> None:
    """Take the largest magnitudes of values (..., channels) into account."""
    reached = values.abs().flatten(end_dim=-2).amax(dim=0)
    peaks[name] = torch.maximum(reached, peaks.get(name, reached))


def _stand_out(peaks: Tensor) -> tuple[int, ...]:
    """Channels far above the typical one by their peaks (channels,): the strongest, ascending."""
    active = peaks[peaks > 0]  # a channel that is always 0 is not typical
    if not len(active):
        return ()
    strongest = peaks.topk(int(len(peaks) * MOST))
    chosen = strongest.indices[strongest.values > FACTOR * active.median()]
    return tuple(sorted(chosen.tolist()))
