"""Phi-2 as published, with what TinyGPT-V trained: LoRA's pairs and norms.

Phi-2 has queries, keys and values apart ("split"), or in one matrix whose rows are head by head each head's queries,
keys and values ("fused"). LoRA was trained on fused matrices, so it is merged in their order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgevlm_export.checkpoint import LazyWeight, joined, zeros
from edgevlm_export.families.tinygpt_v.shelf import Shelf
from edgevlm_export.modules.tinygpt_v import TextConfig
from edgevlm_runtime.errors import CheckpointError

ALPHA = 16
"""LoRA's scale is ALPHA over its rank."""
_PARTS = ("q_proj", "k_proj", "v_proj")
_FUSED = "query_key_value"
_AFFINE = ("weight", "bias")
_WRAPPERS = re.compile(r"llama_model\.(base_model\.model\.)?")
_LORA = re.compile(r"(?P<matrix>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What is added to a matrix (out, in): up (out, rank) times down (rank, in), scaled."""

    down: LazyWeight
    up: LazyWeight

    def added_to(self, base: LazyWeight) -> LazyWeight:
        """The matrix with the pair merged, in float32.

        Raises:
            CheckpointError: their shapes do not fit.
        """
        rank = self.down.shape[0]
        if self.down.shape != (rank, base.shape[1]) or self.up.shape != (base.shape[0], rank):
            raise CheckpointError(
                f"tensor {self.down.origin}: has shape {self.down.shape} and its pair {self.up.shape}, which do not "
                f"fit {base.origin} of shape {base.shape}"
            )
        return LazyWeight(origin=base.origin, shape=base.shape, read=lambda: self._merge(base, ALPHA / rank))

    def _merge(self, base: LazyWeight, scale: float) -> Tensor:
        return torch.addmm(base.read().float(), self.up.read().float(), self.down.read().float(), alpha=scale)


def text_tensors(phi: Shelf, trained: Shelf, config: TextConfig) -> dict[str, LazyWeight]:
    """The decoder's tensors by the module's names; those that are left over keep their own.

    Raises:
        CheckpointError: one is missing, or a pair of LoRA is incomplete or does not fit.
    """
    pairs, changed = _read_trained(trained)
    shelf = Shelf({**phi.left, **changed}, phi.file)
    named = {
        "text.wte": shelf.take("model.embed_tokens.weight"),
        **_layers(shelf, {"text.post_ln": "model.final_layernorm", "text.lm_head": "lm_head"}),
    }
    for index in range(config.n_layers):
        named |= _block(shelf, pairs, trained, f"model.layers.{index}", f"text.blocks.{index}", config)
    strays = {weight.origin: weight for pair in pairs.values() for weight in (pair.down, pair.up)}
    return named | shelf.left | strays


def _read_trained(trained: Shelf) -> tuple[dict[str, Lora], dict[str, LazyWeight]]:
    """LoRA's pairs by their matrix, and the other tensors, both by Phi-2's own keys."""
    sides: dict[tuple[str, str], LazyWeight] = {}
    changed: dict[str, LazyWeight] = {}
    for key, weight in trained.left.items():
        name = _WRAPPERS.sub("", key, count=1)
        match = _LORA.fullmatch(name)
        place = (match["matrix"], match["side"]) if match else None
        if place in sides or name in changed:
            raise CheckpointError(f"{trained.file}: tensor {key} is there twice, under two names; remove one of them")
        if place is not None:
            sides[place] = weight
        else:
            changed[name] = weight
    for matrix, side in sides:
        if (matrix, "B" if side == "A" else "A") not in sides:
            raise CheckpointError(f"{trained.file}: tensor {sides[matrix, side].origin} has no other half of its pair")
    matrices = dict.fromkeys(matrix for matrix, _ in sides)
    return {matrix: Lora(down=sides[matrix, "A"], up=sides[matrix, "B"]) for matrix in matrices}, changed


def _block(
    shelf: Shelf, pairs: dict[str, Lora], trained: Shelf, source: str, target: str, config: TextConfig
) -> dict[str, LazyWeight]:
    attention = f"{source}.self_attn"
    for matrix in (f"{attention}.{_FUSED}", f"{attention}.dense"):
        if matrix not in pairs:
            raise CheckpointError(f"{trained.file}: LoRA of {matrix} is missing; is it a stage of TinyGPT-V?")
    fused, dense = (pairs.pop(f"{attention}.{name}") for name in (_FUSED, "dense"))
    weight, bias = (_fused(shelf, attention, leaf, config.n_heads) for leaf in _AFFINE)
    named = {
        f"{target}.attn.qkv.weight": deinterleaved(fused.added_to(weight), config.n_heads),
        f"{target}.attn.qkv.bias": deinterleaved(bias, config.n_heads),
        f"{target}.attn.proj.weight": dense.added_to(shelf.take(f"{attention}.dense.weight")),
        f"{target}.attn.proj.bias": shelf.take(f"{attention}.dense.bias"),
        f"{target}.attn.post_ln.weight": _norm(shelf, trained, f"{source}.post_layernorm.weight"),
    }
    for side in ("q", "k"):
        key = f"{attention}.{side}_layernorm"
        named[f"{target}.attn.{side}_ln.weight"] = _norm(shelf, trained, f"{key}.weight")
        # Not trained, so not saved: they are what they began as.
        named[f"{target}.attn.{side}_ln.bias"] = shelf.take_or(f"{key}.bias", zeros(config.head_dim))
    layers = {"ln": "input_layernorm", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    return named | _layers(shelf, {f"{target}.{name}": f"{source}.{own}" for name, own in layers.items()})


def _norm(shelf: Shelf, trained: Shelf, key: str) -> LazyWeight:
    """A norm that Phi-2 does not have."""
    if key not in shelf.left:
        raise CheckpointError(f"{trained.file}: tensor {key} is missing; is it a stage of TinyGPT-V?")
    return shelf.take(key)


def _layers(shelf: Shelf, layers: Mapping[str, str]) -> dict[str, LazyWeight]:
    """Weights and biases of layers, by the module's name -> the published one."""
    return {
        f"{name}.{leaf}": shelf.take(f"{published}.{leaf}") for name, published in layers.items() for leaf in _AFFINE
    }


def _fused(shelf: Shelf, attention: str, leaf: str, n_heads: int) -> LazyWeight:
    """Weight or bias of the projection to queries, keys and values in the fused order, whatever the layout."""
    fused = f"{attention}.{_FUSED}.{leaf}"
    if fused in shelf.left:
        return shelf.take(fused)
    return interleaved(joined(*(shelf.take(f"{attention}.{part}.{leaf}") for part in _PARTS)), n_heads)


def interleaved(weight: LazyWeight, n_heads: int) -> LazyWeight:
    """Rows [queries, keys, values], each head by head, to head by head [queries, keys, values]."""
    return _reordered(weight, (len(_PARTS), n_heads))


def deinterleaved(weight: LazyWeight, n_heads: int) -> LazyWeight:
    """The reverse of `interleaved`."""
    return _reordered(weight, (n_heads, len(_PARTS)))


def _reordered(weight: LazyWeight, groups: tuple[int, int]) -> LazyWeight:
    """Rows in groups of groups, the two levels exchanged."""
    if weight.shape[0] % (groups[0] * groups[1]):
        raise CheckpointError(
            f"tensor {weight.origin}: has shape {weight.shape}, which {groups[0]} x {groups[1]} does not divide"
        )

    def read() -> Tensor:
        rows = weight.read()
        first, second = groups
        return rows.reshape(first, second, -1, *rows.shape[1:]).transpose(0, 1).reshape(rows.shape)

    return LazyWeight(origin=weight.origin, shape=weight.shape, read=read)
