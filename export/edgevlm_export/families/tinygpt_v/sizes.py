"""Sizes from the shapes of tensors, and from Phi-2's config.json what no shape tells."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.families.tinygpt_v.files import LARGE_STAGE, Parts
from edgevlm_export.modules.tinygpt_v import QFormerConfig, TextConfig, TinyGptVConfig, VisionConfig
from edgevlm_runtime.errors import CheckpointError

VISION_HEAD_DIM = 88
QFORMER_HEAD_DIM = 64
UNUSED_BLOCKS = 1
"""EVA's file has one block more than the image encoder of BLIP-2 uses."""
_AS_PHI_2 = {"layer_norm_eps": 1e-5, "hidden_act": "gelu_new"}
_ROTARY_STEP = 16  # what engines want the rotary dimensions to be a multiple of


def read_sizes(parts: Parts, config: Mapping[str, Any]) -> TinyGptVConfig:
    """All sizes; `config` is Phi-2's config.json.

    Raises:
        CheckpointError: a tensor that tells a size is missing or odd, or config.json does not fit the tensors.
    """
    files = parts.files
    return TinyGptVConfig(
        vision=_read_vision(parts.vision, files.vision, files.stage),
        qformer=_read_qformer({**parts.qformer, **parts.trained}, files.qformer),
        text=_read_text(parts.phi, files.phi, config),
    )


def _read_vision(tensors: Mapping[str, LazyWeight], file: Path, stage: int) -> VisionConfig:
    dim, _, patch_px, _ = _shape(tensors, "patch_embed.proj.weight", 4, file)
    ff_dim, _ = _shape(tensors, "blocks.0.mlp.fc1.weight", 2, file)
    _, n_positions, _ = _shape(tensors, "pos_embed", 3, file)
    side = math.isqrt(n_positions - 1)
    if side * side != n_positions - 1:
        raise CheckpointError(f"{file}: tensor pos_embed has {n_positions} positions, not a class token and a square")
    n_blocks = _count(tensors, r"blocks\.(\d+)\.")
    if n_blocks <= UNUSED_BLOCKS:
        raise CheckpointError(f"{file}: has {n_blocks} block; the last is never used, so there must be more")
    return VisionConfig(
        dim=dim,
        ff_dim=ff_dim,
        n_layers=n_blocks - UNUSED_BLOCKS,
        n_heads=_heads(dim, VISION_HEAD_DIM, file),
        patch_px=patch_px,
        grid=side * (2 if stage == LARGE_STAGE else 1),
    )


def _read_qformer(tensors: Mapping[str, LazyWeight], file: Path) -> QFormerConfig:
    _, n_queries, dim = _shape(tensors, "query_tokens", 3, file)
    ff_dim, _ = _shape(tensors, "Qformer.bert.encoder.layer.0.intermediate_query.dense.weight", 2, file)
    return QFormerConfig(
        dim=dim,
        ff_dim=ff_dim,
        n_layers=_count(tensors, r"Qformer\.bert\.encoder\.layer\.(\d+)\."),
        n_heads=_heads(dim, QFORMER_HEAD_DIM, file),
        n_queries=n_queries,
    )


def _read_text(tensors: Mapping[str, LazyWeight], folder: Path, config: Mapping[str, Any]) -> TextConfig:
    vocab_size, dim = _shape(tensors, "model.embed_tokens.weight", 2, folder)
    ff_dim, _ = _shape(tensors, "model.layers.0.mlp.fc1.weight", 2, folder)
    n_layers = _count(tensors, r"model\.layers\.(\d+)\.")
    path = folder / "config.json"
    n_heads = int(_number(config, "num_attention_heads", path))
    if dim % n_heads:
        raise CheckpointError(f"{path}: num_attention_heads is {n_heads}, which does not divide the {dim} channels")
    _expect(config, {"num_hidden_layers": n_layers, "num_key_value_heads": n_heads, **_AS_PHI_2}, path)
    rotary_dim = int(dim // n_heads * _number(config, "partial_rotary_factor", path))
    if rotary_dim % _ROTARY_STEP or not rotary_dim:
        raise CheckpointError(f"{path}: {rotary_dim} dimensions of a head turn, expected a multiple of {_ROTARY_STEP}")
    return TextConfig(
        dim=dim,
        ff_dim=ff_dim,
        n_layers=n_layers,
        n_heads=n_heads,
        rotary_dim=rotary_dim,
        vocab_size=vocab_size,
        max_context=int(_number(config, "max_position_embeddings", path)),
        rope_theta=float(config.get("rope_theta", TextConfig.rope_theta)),
    )


def _expect(config: Mapping[str, Any], expected: Mapping[str, object], path: Path) -> None:
    """What config.json says of these keys must be as expected; it may be silent."""
    for key, value in expected.items():
        if config.get(key) not in (None, value):
            raise CheckpointError(f"{path}: {key} is {config[key]!r}, expected {value!r}; is it Phi-2's?")


def _shape(tensors: Mapping[str, LazyWeight], key: str, rank: int, file: Path) -> tuple[int, ...]:
    if key not in tensors:
        raise CheckpointError(f"{file}: tensor {key} is missing; is it a checkpoint of another model?")
    shape = tensors[key].shape
    if len(shape) != rank:
        raise CheckpointError(f"{file}: tensor {key} has shape {shape}, expected {rank} axes")
    return shape


def _count(tensors: Mapping[str, LazyWeight], pattern: str) -> int:
    """One more than the highest number in keys that begin with the pattern."""
    numbers = (int(match.group(1)) for key in tensors if (match := re.match(pattern, key)))
    return max(numbers, default=-1) + 1


def _heads(dim: int, head_dim: int, file: Path) -> int:
    if dim % head_dim:
        raise CheckpointError(f"{file}: is {dim} channels wide, which heads of {head_dim} do not divide")
    return dim // head_dim


def _number(config: Mapping[str, Any], key: str, path: Path) -> float:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(f"{path}: {key} is {value!r}, expected a positive number")
    return value
