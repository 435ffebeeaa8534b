"""Models of the transformers package as published: config.json and tensors to modules, and these to graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgevlm_export.checkpoint import Checkpoint, LazyWeight
from edgevlm_export.families.family import ImageGraph
from edgevlm_export.optimum_trace import NOISY, OptimumExporter, trace_optimum
from edgevlm_export.quiet import quiet
from edgevlm_export.torchvision_operators import declare_missing_operators
from edgevlm_export.weights import Weights, match_weights, module_shapes
from edgevlm_runtime.engines import Array
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import Role, TensorSpec

_N_TRACED = 2  # tells the free first axis of a trace apart from axes of 1
_MAX_SCALAR = 100.0
_BUFFER = "position_ids"  # numbers from 0 up, stored by older versions of transformers


@dataclass(frozen=True, kw_only=True)
class Tower:
    """One graph's module: `build` makes it, its one input goes in and its outputs, by transformers' names, come out.

    `tokens` is the length of texts to trace with, and when the shapes are to be fixed.
    """

    role: Role
    build: Callable[[], nn.Module]
    exporter: OptimumExporter
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    tokens: int = 0


def read_config(checkpoint: Checkpoint, model_type: str, make: Callable[[dict[str, Any]], Any]) -> Any:
    """config.json of that model type as transformers' class; `make` makes it from the file's fields.

    Raises:
        CheckpointError: it is missing, of another model, or its fields contradict each other.
    """
    path = checkpoint.folder / "config.json"
    data = checkpoint.read_config()
    if not data:
        raise CheckpointError(f"{path}: no such file; it lies beside the tensors where they were published")
    if data.get("model_type") != model_type:
        raise CheckpointError(f"{path}: model_type is {data.get('model_type')!r}, expected {model_type!r}")
    try:
        with quiet(*NOISY):
            declare_missing_operators()
            return make(data)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: can not be used ({str(error).splitlines()[0][:200]})") from error


def image_input(checkpoint: Checkpoint, config: Any) -> TensorSpec:
    """What a tower with that part of the config looks at.

    Raises:
        CheckpointError: it is not made for square images in color.
    """
    side, n_channels = config.image_size, config.num_channels
    if type(side) is not int or n_channels != 3:
        path = checkpoint.folder / "config.json"
        raise CheckpointError(f"{path}: images are {side} x {n_channels} channels, expected square ones in color")
    return TensorSpec(name="images", dtype="float32", shape=("images", 3, side, side))


def read_scalar(weights: Weights, name: str) -> float:
    """A parameter of one element, such as a bias or the logarithm of a scale.

    Raises:
        CheckpointError: it is not finite, or beyond all reason.
    """
    value = _finite(name, weights).item()
    if abs(value) > _MAX_SCALAR:
        raise CheckpointError(f"tensor {name}: is {value:g}, expected at most {_MAX_SCALAR:g}")
    return value


def match_towers(checkpoint: Checkpoint, towers: tuple[Tower, ...], extra: Mapping[str, tuple[int, ...]]) -> Weights:
    """The tensors of all towers and those of `extra`, none of them read.

    Raises:
        CheckpointError: tensors are missing, unknown or misshapen, or the sizes in config.json contradict each other.
    """
    expected = dict(extra)
    for tower in towers:
        expected |= module_shapes(_build(tower, checkpoint, "meta"))
    found: dict[str, LazyWeight] = {
        name: weight for name, weight in checkpoint.items() if not name.endswith(f".{_BUFFER}")
    }
    return match_weights(expected, found, str(checkpoint.path))


def image_graphs(checkpoint: Checkpoint, towers: tuple[Tower, ...], weights: Weights) -> tuple[ImageGraph, ...]:
    """The graphs of towers, each loaded when first needed; one at a time is held in memory."""

    @lru_cache(maxsize=1)
    def load(index: int) -> nn.Module:
        return _load(_build(towers[index], checkpoint, "cpu"), weights)

    return tuple(_image_graph(tower, partial(load, index)) for index, tower in enumerate(towers))


def build(class_name: str, config: Any) -> nn.Module:
    """A class of the transformers package, in float32 and with attention that traces to a few operators."""
    import transformers

    module: nn.Module = getattr(transformers, class_name)._from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    return module


def _build(tower: Tower, checkpoint: Checkpoint, device: str) -> nn.Module:
    """The module without values."""
    from transformers.modeling_utils import no_init_weights

    try:
        with quiet(*NOISY), no_init_weights(), torch.device(device):
            return tower.build().eval()
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ZeroDivisionError) as error:
        path = checkpoint.folder / "config.json"
        raise CheckpointError(f"{path}: {tower.role} can not be built ({str(error).splitlines()[0][:200]})") from error


def _load(module: nn.Module, weights: Weights) -> nn.Module:
    state = {name: _finite(name, weights) for name in module_shapes(module)}
    module.load_state_dict(state, assign=True)
    return module


def _finite(name: str, weights: Weights) -> Tensor:
    tensor = weights[name]
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"tensor {name}: has values that are not finite; download the checkpoint again")
    return tensor


def _image_graph(tower: Tower, load: Callable[[], nn.Module]) -> ImageGraph:
    free = str(tower.input.shape[0])

    def trace(fixed: bool) -> ir.Model:
        sizes = {free: 1 if fixed else _N_TRACED, "tokens": tower.tokens}
        return trace_optimum(load(), tower.exporter, (tower.input,), tower.outputs, sizes, fixed=fixed)

    def reference(inputs: Mapping[str, Array]) -> dict[str, Array]:
        value = torch.from_numpy(inputs[tower.input.name])
        with torch.inference_mode():
            found = load()(**{tower.exporter.inputs[0]: value})
        names = zip(tower.outputs, tower.exporter.outputs, strict=True)
        return {spec.name: found[published].numpy() for spec, published in names}

    return ImageGraph(role=tower.role, inputs=(tower.input,), outputs=tower.outputs, trace=trace, reference=reference)
