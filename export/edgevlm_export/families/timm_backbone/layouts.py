"""Every published layout of these models' tensors to timm's names.

timm: its own names, FastViT also with folded branches. TinyViT's authors: `layers.{i}` with the downsampling at a
stage's end. Apple's FastViT, before and after folding, alone or inside MobileCLIP: one flat list of stages,
downsamplings and position encodings.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_runtime.errors import CheckpointError

Origin: TypeAlias = Literal["timm", "tiny_vit", "apple"]
_Rules: TypeAlias = tuple[tuple[str, str], ...]

# What surrounds an image tower in a dual encoder's checkpoint.
_PREFIXES = ("image_encoder.model.", "module.visual.trunk.", "visual.trunk.", "module.")
COMPUTED = ("num_batches_tracked", "attention_bias_idxs")  # not used, or made by the module itself
_TINY_VIT: _Rules = (
    (r"^patch_embed\.seq\.0\.", "patch_embed.conv1."),
    (r"^patch_embed\.seq\.2\.", "patch_embed.conv2."),
    (r"^layers\.", "stages."),
    (r"\.c\.weight$", ".conv.weight"),
    (r"^norm_head\.", "head.norm."),
    (r"^head\.(?!norm\.)", "head.fc."),
)
_APPLE: _Rules = (
    (r"^patch_embed\.", "stem."),
    (r"^conv_exp\.", "final_conv."),
    (r"\brbr_conv\b", "conv_kxk"),
    (r"\brbr_scale\b", "conv_scale"),
    (r"\brbr_skip\b", "identity"),
    (r"\blkb_origin\b", "large_conv"),
    (r"\blkb_reparam\b", "reparam_conv"),
    (r"\bconvffn\b", "mlp"),
    (r"\bse\.reduce\b", "se.fc1"),
    (r"\bse\.expand\b", "se.fc2"),
    (r"\b(layer_scale(?:_\d)?)$", r"\1.gamma"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Tensors by timm's names, where they come from, and whether a FastViT's branches are folded already."""

    origin: Origin
    folded: bool
    tensors: Mapping[str, LazyWeight]


def canonical(tensors: Mapping[str, LazyWeight]) -> Layout:
    """Recognize the layout; keys of none stay as they are.

    Raises:
        CheckpointError: two keys have one name.
    """
    inner = _without_prefix(tensors)
    folded = any(key.endswith("reparam_conv.weight") for key in inner)
    if any(key.startswith("patch_embed.seq.") for key in inner):
        return Layout(origin="tiny_vit", folded=False, tensors=_rename(inner, _tiny_vit_name))
    if any(re.match(r"patch_embed\.0\.(rbr_|reparam_conv)", key) for key in inner):
        ends = sorted({int(match[1]) for key in inner if (match := re.match(r"network\.(\d+)\.proj\.", key))})
        renamed = _rename(_projected(inner), lambda key: _apple_name(key, ends))
        return Layout(origin="apple", folded=folded, tensors=renamed)
    return Layout(origin="timm", folded=folded and "stem.0.reparam_conv.weight" in inner, tensors=inner)


def _without_prefix(tensors: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    prefix = next((prefix for prefix in _PREFIXES if any(key.startswith(prefix) for key in tensors)), "")
    return {
        key.removeprefix(prefix): weight
        for key, weight in tensors.items()
        if key.startswith(prefix) and not key.endswith(COMPUTED)
    }


def _rename(tensors: Mapping[str, LazyWeight], name_of: Callable[[str], str]) -> dict[str, LazyWeight]:
    named: dict[str, LazyWeight] = {}
    for key, weight in tensors.items():
        name = name_of(key)
        if name in named:
            raise CheckpointError(f"tensors {named[name].origin} and {key} are both {name}; remove one of them")
        named[name] = weight
    return named


def _tiny_vit_name(key: str) -> str:
    # The same layer ends stage i there and begins stage i + 1 in timm.
    key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda match: f"stages.{int(match[1]) + 1}.downsample.", key)
    return _apply(_TINY_VIT, key)


def _apple_name(key: str, ends: Iterable[int]) -> str:
    """`ends` are the downsamplings' places in the flat list: each begins a stage."""
    match = re.match(r"network\.(\d+)\.(.*)", key)
    if match is None:
        return _apply(_APPLE, key)
    stage, rest = bisect_right(list(ends), int(match[1])), match[2]
    if rest.startswith("proj."):
        part = f"downsample.{rest}"
    elif rest.startswith("pe."):
        part = f"pos_emb.pos_enc.{rest.removeprefix('pe.')}"
    elif rest.startswith("reparam_conv."):
        part = f"pos_emb.{rest}"
    else:
        part = f"blocks.{rest}"
    return _apply(_APPLE, f"stages.{stage}.{part}")


def _apply(rules: _Rules, key: str) -> str:
    for pattern, name in rules:
        key = re.sub(pattern, name, key)
    return key


def _projected(tensors: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """MobileCLIP's projection (in, out), which has no bias, as a classifier's weight (out, in) and zeros."""
    if "head.proj" not in tensors:
        return dict(tensors)
    weight = tensors["head.proj"].transposed()
    bias = LazyWeight(origin=weight.origin, shape=weight.shape[:1], read=lambda: torch.zeros(weight.shape[0]))
    others = {key: value for key, value in tensors.items() if key != "head.proj"}
    return {**others, "head.weight": weight, "head.bias": bias}
