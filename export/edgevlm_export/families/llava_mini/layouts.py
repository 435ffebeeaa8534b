"""LLaVA-Mini's published tensors, and those of its vision tower wherever they lie, to the module's own names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from edgevlm_export.checkpoint import LazyWeight, joined
from edgevlm_export.modules.clip_vision import CHANNELS, ClipVisionConfig
from edgevlm_export.modules.llama import LlamaConfig
from edgevlm_export.modules.llava_mini import CompressorTensors, LlavaMiniConfig, fold_key_positions, fold_queries
from edgevlm_export.weights import Weights, match_weights

TOWER = "model.vision_tower.vision_tower.vision_model."
# In a checkpoint, with and without the class that wraps the tower; in one of its own, with and without CLIP's text.
_TOWER = re.compile(
    r"(model\.)?(vision_tower\.)?(vision_tower\.)?vision_model\.|(model\.)?vision_tower\.(vision_tower\.)?"
)
_UNUSED = re.compile(r".*(\.rotary_emb\.inv_freq|\.position_ids)")
_COMPRESSOR: Mapping[str, str] = {
    "query": "query",
    "positions": "pos_embed",
    "ln_weight": "ln_q.weight",
    "ln_bias": "ln_q.bias",
    "in_weight": "attn.in_proj_weight",
    "in_bias": "attn.in_proj_bias",
}


def tower_tensors(tensors: Mapping[str, LazyWeight]) -> dict[str, LazyWeight]:
    """The vision tower's tensors among others, by CLIP's own names, such as `embeddings.class_embedding`.

    Its last norm, and the text half of a whole CLIP, are left out.
    """
    found = {}
    for key, weight in tensors.items():
        match = _TOWER.match(key)
        if match is not None and not _UNUSED.fullmatch(key):
            name = key[match.end() :].replace("pre_layernorm", "pre_layrnorm")
            if not name.startswith("post_layernorm"):
                found[name] = weight
    return found


def canonical(
    checkpoint: Mapping[str, LazyWeight], tower: Mapping[str, LazyWeight], config: LlavaMiniConfig, where: str
) -> Weights:
    """All parameters by the module's names, those of the tower from `tower_tensors`; none is read.

    Raises:
        CheckpointError: tensors are missing, unknown or misshapen.
    """
    own = {key: weight for key, weight in checkpoint.items() if not _TOWER.match(key) and not _UNUSED.fullmatch(key)}
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if head not in own and table in own:
        own[head] = own[table]  # as config.json's tie_word_embeddings says
    match_weights(published_shapes(config), own, where)
    used = {name: weight for name, weight in tower.items() if _layer(name) < config.vision.n_layers}
    match_weights(tower_shapes(config.vision), used, f"{where}: vision tower", "are they all of one tower?")
    return Weights(_text(own, config) | _compressor(own, config) | _vision(used, config.vision))


def _layer(name: str) -> int:
    """The layer that a tower's tensor is of, -1 where of none."""
    parts = name.split(".")
    return int(parts[2]) if name.startswith("encoder.layers.") and parts[2].isdecimal() else -1


def _text(own: Mapping[str, LazyWeight], config: LlavaMiniConfig) -> dict[str, LazyWeight]:
    found = {
        "text.wte": own["model.embed_tokens.weight"],
        "text.norm.weight": own["model.norm.weight"],
        "text.lm_head.weight": own["lm_head.weight"],
    }
    for stack, key, n_layers in _stacks(config):
        for index in range(n_layers):
            block, layer = f"{stack}.blocks.{index}", f"{key}.{index}"
            found |= {
                f"{block}.ln1.weight": own[f"{layer}.input_layernorm.weight"],
                f"{block}.ln2.weight": own[f"{layer}.post_attention_layernorm.weight"],
                f"{block}.attn.qkv.weight": joined(*(own[f"{layer}.self_attn.{part}_proj.weight"] for part in "qkv")),
                f"{block}.attn.proj.weight": own[f"{layer}.self_attn.o_proj.weight"],
                f"{block}.mlp.gate_up.weight": joined(
                    own[f"{layer}.mlp.gate_proj.weight"], own[f"{layer}.mlp.up_proj.weight"]
                ),
                f"{block}.mlp.down.weight": own[f"{layer}.mlp.down_proj.weight"],
            }
    return found


def _stacks(config: LlavaMiniConfig) -> tuple[tuple[str, str, int], ...]:
    """The module's and the checkpoint's name of each stack of layers, and how many it has."""
    return (
        ("text", "model.layers", config.text.n_layers),
        ("prefusion", "model.prefusion_layers", config.n_prefusion_layers),
    )


def _compressor(own: Mapping[str, LazyWeight], config: LlavaMiniConfig) -> dict[str, LazyWeight]:
    parts = {field: own[f"model.compressor.{key}"] for field, key in _COMPRESSOR.items()}
    dim, n_keys = config.vision.dim, config.compressed_grid**2

    def published() -> CompressorTensors:
        return CompressorTensors(**{field: weight.read().float() for field, weight in parts.items()})

    def part(weight: LazyWeight, index: int) -> LazyWeight:
        rows = slice(index * dim, (index + 1) * dim)
        return _derived(weight, (dim, *weight.shape[1:]), lambda tensor: tensor[rows])

    found = {
        "compressor.ln.weight": own["model.compressor.ln_kv.weight"],
        "compressor.ln.bias": own["model.compressor.ln_kv.bias"],
        "compressor.queries": LazyWeight(
            origin=parts["query"].origin, shape=(config.n_compressed, dim), read=lambda: fold_queries(published())
        ),
        "compressor.key.weight": part(parts["in_weight"], 1),
        "compressor.value.weight": part(parts["in_weight"], 2),
        "compressor.value.bias": part(parts["in_bias"], 2),
        "compressor.proj.weight": own["model.compressor.attn.out_proj.weight"],
        "compressor.proj.bias": own["model.compressor.attn.out_proj.bias"],
        "projector.fc1.weight": own["model.mm_projector.0.weight"],
        "projector.fc1.bias": own["model.mm_projector.0.bias"],
        "projector.fc2.weight": own["model.mm_projector.2.weight"],
        "projector.fc2.bias": own["model.mm_projector.2.bias"],
    }
    if config.n_compressed > 1:
        found["compressor.key_positions"] = LazyWeight(
            origin=parts["positions"].origin,
            shape=(n_keys, dim),
            read=lambda: fold_key_positions(published(), n_keys),
        )
    return found


def _vision(tower: Mapping[str, LazyWeight], config: ClipVisionConfig) -> dict[str, LazyWeight]:
    patches = tower["embeddings.patch_embedding.weight"]
    shape = (config.dim, CHANNELS * config.patch_px**2)
    found = {
        "vision.patch_emb.weight": _derived(patches, shape, partial(torch.flatten, start_dim=1)),
        "vision.class_emb": tower["embeddings.class_embedding"],
        "vision.pos_emb": tower["embeddings.position_embedding.weight"],
        "vision.pre_ln.weight": tower["pre_layrnorm.weight"],
        "vision.pre_ln.bias": tower["pre_layrnorm.bias"],
    }
    renamed = {"ln1": "layer_norm1", "ln2": "layer_norm2", "attn.proj": "self_attn.out_proj", "fc1": "mlp.fc1"}
    renamed["fc2"] = "mlp.fc2"
    for index in range(config.n_layers):
        block, layer = f"vision.blocks.{index}", f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            found |= {f"{block}.{ours}.{kind}": tower[f"{layer}.{theirs}.{kind}"] for ours, theirs in renamed.items()}
            found[f"{block}.attn.qkv.{kind}"] = joined(*(tower[f"{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"))
    return found


def _derived(weight: LazyWeight, shape: tuple[int, ...], make: Callable[[Tensor], Tensor]) -> LazyWeight:
    return LazyWeight(origin=weight.origin, shape=shape, read=lambda: make(weight.read()))


def published_shapes(config: LlavaMiniConfig) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a checkpoint, without its vision tower."""
    text, dim, n = config.text, config.vision.dim, config.n_compressed
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (text.vocab_size, text.dim),
        "model.norm.weight": (text.dim,),
        "lm_head.weight": (text.vocab_size, text.dim),
        "model.compressor.pos_embed": (n, dim),
        "model.compressor.query": (n, dim),
        "model.compressor.attn.in_proj_weight": (3 * dim, dim),
        "model.compressor.attn.in_proj_bias": (3 * dim,),
        "model.compressor.attn.out_proj.weight": (dim, dim),
        "model.compressor.attn.out_proj.bias": (dim,),
        "model.mm_projector.0.weight": (text.dim, dim),
        "model.mm_projector.0.bias": (text.dim,),
        "model.mm_projector.2.weight": (text.dim, text.dim),
        "model.mm_projector.2.bias": (text.dim,),
    }
    shapes |= {f"model.compressor.{ln}.{kind}": (dim,) for ln in ("ln_q", "ln_kv") for kind in ("weight", "bias")}
    for _, key, n_layers in _stacks(config):
        for index in range(n_layers):
            shapes |= {f"{key}.{index}.{name}": shape for name, shape in _layer_shapes(text).items()}
    return shapes


def _layer_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    dim, ff_dim, kv_dim = config.dim, config.ff_dim, config.n_kv_heads * config.head_dim
    return {
        "self_attn.q_proj.weight": (dim, dim),
        "self_attn.k_proj.weight": (kv_dim, dim),
        "self_attn.v_proj.weight": (kv_dim, dim),
        "self_attn.o_proj.weight": (dim, dim),
        "mlp.gate_proj.weight": (ff_dim, dim),
        "mlp.up_proj.weight": (ff_dim, dim),
        "mlp.down_proj.weight": (dim, ff_dim),
        "input_layernorm.weight": (dim,),
        "post_attention_layernorm.weight": (dim,),
    }


def tower_shapes(config: ClipVisionConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what is used of a vision tower."""
    dim, ff_dim, patch = config.dim, config.ff_dim, config.patch_px
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (dim,),
        "embeddings.patch_embedding.weight": (dim, CHANNELS, patch, patch),
        "embeddings.position_embedding.weight": (1 + config.n_patches, dim),
        "pre_layrnorm.weight": (dim,),
        "pre_layrnorm.bias": (dim,),
    }
    matrices = {f"self_attn.{name}": (dim, dim) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
    matrices |= {"mlp.fc1": (ff_dim, dim), "mlp.fc2": (dim, ff_dim)}
    for layer in (f"encoder.layers.{index}" for index in range(config.n_layers)):
        for name, shape in matrices.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}.{norm}.weight": (dim,), f"{layer}.{norm}.bias": (dim,)}
    return shapes
