"""Every published layout of Moondream 2's tensors to the module's own names.

Published since 2025: the module's names, each behind `model.`. Training: other names, from compiled modules with
`_orig_mod` in them. 4-bit: matrices packed in groups of 128, two values a byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_runtime.errors import CheckpointError

GROUP = 128
_PACKED = (".packed", ".scale", ".zero_point")
# Buffers that fine-tuning dumps carry and the model computes itself.
_BUFFERS = re.compile(r"text\.blocks\.\d+\.kv_cache\.[kv]_cache|text\.(attn_mask|freqs_cis)|attn_mask|freqs_cis")
_TRAINING_MARKS = ("vision_encoder.", "text_model.", "region_model.")
_TRAINING_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"vision_encoder\.encoder\.model\.visual\.patch_embed\.linear\.", "vision.patch_emb."),
        (r"vision_encoder\.encoder\.model\.visual\.pos_embed$", "vision.pos_emb"),
        (r"vision_encoder\.encoder\.model\.visual\.norm\.", "vision.post_ln."),
        (r"vision_encoder\.encoder\.model\.visual\.blocks\.(\d+)\.norm([12])\.", r"vision.blocks.\1.ln\2."),
        (r"vision_encoder\.encoder\.model\.visual\.blocks\.", "vision.blocks."),
        (r"vision_encoder\.projection\.mlp\.", "vision.proj_mlp."),
        (r"text_model\.transformer\.embd\.wte\.weight$", "text.wte"),
        (r"text_model\.transformer\.h\.(\d+)\.mixer\.Wqkv\.", r"text.blocks.\1.attn.qkv."),
        (r"text_model\.transformer\.h\.(\d+)\.mixer\.out_proj\.", r"text.blocks.\1.attn.proj."),
        (r"text_model\.transformer\.h\.", "text.blocks."),
        (r"text_model\.lm_head\.ln\.", "text.post_ln."),
        (r"text_model\.lm_head\.linear\.", "text.lm_head."),
        (r"region_model\.coordinate_features\.weight$", "region.coord_features"),
        (r"region_model\.size_features\.weight$", "region.size_features"),
        (r"region_model\.coordinate_(encoder|decoder)\.", r"region.coord_\1."),
        (r"region_model\.size_(encoder|decoder)\.", r"region.size_\1."),
    )
)
_TRANSPOSED = ("region.coord_features", "region.size_features")


def is_packed(keys: Mapping[str, LazyWeight]) -> bool:
    """Whether a checkpoint has the 4-bit layout."""
    return any(key.endswith(".weight.packed") for key in keys)


def canonical(tensors: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """Tensors by the module's names; keys of no layout stay as they are.

    Raises:
        CheckpointError: two keys have one name, or a packed matrix is incomplete.
    """
    named: dict[str, LazyWeight] = {}
    for key, weight in tensors.items():
        name = _rename(key)
        if _BUFFERS.fullmatch(name):
            continue
        if name in named:
            raise CheckpointError(f"tensors {named[name].origin} and {key} are both {name}; remove one of them")
        named[name] = weight.transposed() if name in _TRANSPOSED and key.endswith(".weight") else weight
    return _unpack(named)


def _rename(key: str) -> str:
    key = key.replace("._orig_mod", "").removeprefix("_orig_mod.")
    for pattern, name in _TRAINING_NAMES:
        renamed, n_matches = pattern.subn(name, key, count=1)
        if n_matches and key.startswith(_TRAINING_MARKS):
            return renamed
    return key.removeprefix("model.")


def _unpack(named: dict[str, LazyWeight]) -> dict[str, LazyWeight]:
    unpacked = {name: weight for name, weight in named.items() if not name.endswith(_PACKED)}
    for name in named:
        if not name.endswith(_PACKED):
            continue
        matrix = name.rpartition(".")[0]  # ends with .weight
        if matrix not in unpacked:
            unpacked[matrix] = _dequantized(matrix, named)
    return unpacked


def _dequantized(matrix: str, named: dict[str, LazyWeight]) -> LazyWeight:
    bias = matrix.removesuffix(".weight") + ".bias"
    parts = [named.get(name) for name in (*(matrix + suffix for suffix in _PACKED), bias)]
    packed, scale, zero_point, bias_weight = parts
    if packed is None or scale is None or zero_point is None or bias_weight is None:
        raise CheckpointError(f"tensor {matrix}: 4-bit, but one of {', '.join(_PACKED)} or its bias is missing")
    n_groups, n_rows = 2 * packed.shape[0], bias_weight.shape[0]
    if packed.shape[1:] != (GROUP,) or (n_groups * GROUP) % n_rows:
        raise CheckpointError(f"tensor {packed.origin}: has shape {packed.shape}, expected (out * in / 256, {GROUP})")
    for part in (scale, zero_point):
        if part.shape != (n_groups, 1):
            raise CheckpointError(f"tensor {part.origin}: has shape {part.shape}, expected ({n_groups}, 1)")
    shape = (n_rows, n_groups * GROUP // n_rows)
    return LazyWeight(
        origin=packed.origin,
        shape=shape,
        read=lambda: dequantize(packed.read(), scale.read(), zero_point.read()).reshape(shape),
    )


def dequantize(packed: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Packed uint8 (groups / 2, 128) to float32 (groups, 128): (q - zero_point) * scale.

    High nibbles are the first half of the groups, low nibbles the second; scale and zero_point are (groups, 1).
    """
    values = torch.cat((packed >> 4, packed & 0xF)).float()
    return values.sub_(zero_point.float()).mul_(scale.float())
