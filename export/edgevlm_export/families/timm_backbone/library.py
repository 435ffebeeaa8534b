"""timm, imported when asked for: it takes seconds, and only this family needs it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from edgevlm_export.torchvision_operators import declare_missing_operators
from edgevlm_runtime.errors import CheckpointError, ExportError

# What create_model takes that is no property of the module: a config.json must not make it read files or the network.
_FORBIDDEN = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "model_name"}
)


def import_timm() -> Any:
    """The timm package.

    Raises:
        ExportError: it is not installed.
    """
    declare_missing_operators()
    try:
        import timm
    except ImportError as error:
        raise ExportError('timm is not installed; pip install "edgevlm[export]"') from error
    return timm


def check_architecture(name: str, where: str) -> None:
    """Refuse what timm does not have.

    Raises:
        CheckpointError: with the nearest name that it has.
    """
    timm = import_timm()
    if not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.0)
        raise CheckpointError(f"{where}: timm {timm.__version__} has no model {name!r}; the nearest is {nearest[0]}")


def default_config(variant: str, where: str) -> dict[str, Any]:
    """timm's own record of a variant, with or without a pretrained tag: preprocessing, classes, name of the classifier.

    Raises:
        CheckpointError: timm has no such tag.
    """
    import_timm()
    from timm.models import get_pretrained_cfg

    try:
        config = get_pretrained_cfg(variant)
    except RuntimeError as error:
        raise CheckpointError(f"{where}: timm has no pretrained tag {variant!r}") from error
    return {} if config is None else dict(config.to_dict(remove_source=True))


def build(architecture: str, num_classes: int, model_args: Mapping[str, Any], where: str) -> nn.Module:
    """The module in eval mode with random weights, its attention written out in plain operators.

    Raises:
        CheckpointError: timm can not build it from these arguments.
    """
    forbidden = sorted(_FORBIDDEN & model_args.keys())
    if forbidden:
        raise CheckpointError(f"{where}: model_args has {forbidden[0]}, which is no property of a model; remove it")
    try:
        module: nn.Module = import_timm().create_model(
            architecture, pretrained=False, **{**model_args, "num_classes": num_classes}
        )
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"{where}: timm can not build {architecture} with its model_args ({reason})") from error
    for part in module.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # type: ignore[assignment]  # torch's fused operator becomes twice as many nodes
    return module.eval().requires_grad_(False)


def filter_tensors(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Tensors as timm's loader for the module would rename them; as they are where it has none, or none that fits."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return dict(tensors)
    try:
        converted = convert(dict(tensors), module)
    except (KeyError, IndexError, RuntimeError, ValueError, AttributeError, AssertionError):
        return dict(tensors)  # they are of no layout that timm knows: the names will tell
    return {key: value for key, value in converted.items() if isinstance(value, Tensor)}
