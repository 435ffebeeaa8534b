"""A checkpoint's tensors into timm's module, all of them and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.families.timm_backbone.description import Description
from edgevlm_export.families.timm_backbone.layouts import COMPUTED, Layout
from edgevlm_export.families.timm_backbone.library import build, filter_tensors
from edgevlm_export.weights import match_weights


def load(description: Description, layout: Layout, where: str) -> Any:
    """The module in eval mode, in float32, its weights read.

    Raises:
        CheckpointError: tensors are misshapen, missing or left over, or timm can not build the module.
    """
    args = dict(description.model_args)
    if layout.folded and description.architecture.startswith("fastvit"):
        args["inference_mode"] = True
    module = build(description.architecture, _count_classes(description, layout), args, where)
    expected = {name: value for name, value in module.state_dict().items() if not name.endswith(COMPUTED)}
    found = dict(layout.tensors)
    if layout.origin == "timm" and expected.keys() != found.keys():
        found = _filtered(found, module)
    advice = f"it is a checkpoint of another variant than {description.architecture}"
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    weights = match_weights(shapes, found, where, advice)
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(weights.stored(name) if value.is_floating_point() else found[name].read())
    return module.eval()


def _count_classes(description: Description, layout: Layout) -> int:
    """As config.json says, else as many as the classifier's rows: timm's default number is that of one variant."""
    if description.num_classes is not None:
        return description.num_classes
    weight = layout.tensors.get(f"{description.classifier}.weight")
    return weight.shape[0] if weight is not None else 0


def _filtered(tensors: dict[str, LazyWeight], module: Any) -> dict[str, LazyWeight]:
    """Tensors as timm's own loader of older layouts names them."""
    read = {key: weight.read() for key, weight in tensors.items()}
    return {key: _held(key, tensor) for key, tensor in filter_tensors(read, module).items()}


def _held(key: str, tensor: Tensor) -> LazyWeight:
    return LazyWeight(origin=key, shape=tuple(tensor.shape), read=lambda: tensor)
