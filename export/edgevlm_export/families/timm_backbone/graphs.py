"""A loaded timm model to the one graph that its bundle has."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgevlm_export.families.family import ImageGraph
from edgevlm_export.reparameterize import reparameterize
from edgevlm_export.trace import trace_loaded
from edgevlm_runtime.engines import Array
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import TensorSpec

_SIZES = {"images": 2}


class _Classifier(nn.Module):
    """Images (images, 3, side, side) to logits (images, classes) and features (images, dim)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.model.forward_features(images)
        return self.model.forward_head(maps), self.model.forward_head(maps, pre_logits=True)


class _Encoder(nn.Module):
    """Images (images, 3, side, side) to embeddings (images, dim)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (self.model(images),)


@dataclass(frozen=True, kw_only=True)
class _Backbone:
    """The published module with what goes in and out."""

    module: nn.Module
    wrap: type[_Classifier] | type[_Encoder]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def trace(self, fixed: bool) -> ir.Model:
        first = 1 if fixed else "images"
        inputs, outputs = (_with_first(specs, first) for specs in (self.inputs, self.outputs))
        return trace_loaded(self.wrap(reparameterize(self.module)), inputs, outputs, _SIZES)

    def trace_published(self) -> ir.Model:
        # A copy, as tracing may leave its own tensors in a module's caches.
        module = self.wrap(copy.deepcopy(self.module))
        return trace_loaded(module, self.inputs, self.outputs, _SIZES, fold_batch_norms=False)

    def reference(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with torch.no_grad():
            results = self.wrap(self.module)(torch.from_numpy(inputs["images"]))
        return {spec.name: result.numpy() for spec, result in zip(self.outputs, results, strict=True)}


def image_graph(module: nn.Module, side: int, *, classifies: bool, where: str) -> ImageGraph:
    """The graph of a module in eval mode; `side` in pixels.

    Raises:
        CheckpointError: the module does not take such images, or does not give one vector for each.
    """
    wrap: type[_Classifier] | type[_Encoder] = _Classifier if classifies else _Encoder
    names = ("logits", "features") if classifies else ("embeddings",)
    shapes = _output_shapes(wrap(module), side, where)
    backbone = _Backbone(
        module=module,
        wrap=wrap,
        inputs=(TensorSpec(name="images", dtype="float32", shape=("images", 3, side, side)),),
        outputs=tuple(
            TensorSpec(name=name, dtype="float32", shape=("images", *shape))
            for name, shape in zip(names, shapes, strict=True)
        ),
    )
    return ImageGraph(
        role="classifier" if classifies else "vision",
        inputs=backbone.inputs,
        outputs=backbone.outputs,
        trace=backbone.trace,
        reference=backbone.reference,
        trace_published=backbone.trace_published if _folds(module) else None,
    )


def _folds(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def _output_shapes(module: nn.Module, side: int, where: str) -> list[tuple[int, ...]]:
    try:
        with torch.no_grad():
            shapes = [tuple(output.shape[1:]) for output in module(torch.zeros(1, 3, side, side))]
    except (RuntimeError, AssertionError, AttributeError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{where}: the model does not take images of {side} x {side} px ({reason})") from error
    if any(len(shape) != 1 for shape in shapes):
        raise CheckpointError(f"{where}: the model gives {shapes} for an image, expected vectors; set global_pool")
    return shapes


def _with_first(specs: tuple[TensorSpec, ...], first: int | str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=spec.name, dtype=spec.dtype, shape=(first, *spec.shape[1:])) for spec in specs)
