"""The same model from the parts that transformers ships: SigLIP's encoder and Phi's decoder, weights renamed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM, SiglipVisionConfig, SiglipVisionModel

Tensors = Mapping[str, Tensor]
Model = TypeVar("Model", bound=torch.nn.Module)
PARTS = ("weight", "bias")


def siglip(tensors: Tensors, *, n_layers: int, n_heads: int, patch: int, crop: int) -> SiglipVisionModel:
    """The image encoder; its `last_hidden_state` are the features (crops, patches, dim)."""
    ff_dim, dim = tensors["vision.blocks.0.mlp.fc1.weight"].shape
    config = SiglipVisionConfig(
        hidden_size=dim,
        intermediate_size=ff_dim,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        image_size=crop,
        patch_size=patch,
        layer_norm_eps=1e-5,
        hidden_act="gelu_pytorch_tanh",
        vision_use_head=False,
    )
    state = {
        "vision_model.embeddings.patch_embedding.weight": tensors["vision.patch_emb.weight"].reshape(
            -1, 3, patch, patch
        ),
        "vision_model.embeddings.patch_embedding.bias": tensors["vision.patch_emb.bias"],
        "vision_model.embeddings.position_embedding.weight": tensors["vision.pos_emb"][0],
        **renamed(tensors, "vision.post_ln", "vision_model.post_layernorm"),
    }
    for i in range(n_layers):
        ours, theirs = f"vision.blocks.{i}", f"vision_model.encoder.layers.{i}"
        for a, b in (("ln1", "layer_norm1"), ("ln2", "layer_norm2"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            state |= renamed(tensors, f"{ours}.{a}", f"{theirs}.{b}")
        state |= renamed(tensors, f"{ours}.attn.proj", f"{theirs}.self_attn.out_proj")
        state |= split_qkv(tensors, f"{ours}.attn.qkv", f"{theirs}.self_attn", (dim, dim, dim))
    return loaded(SiglipVisionModel(config), state)


def phi(tensors: Tensors, *, n_layers: int, n_heads: int, n_kv_heads: int) -> PhiForCausalLM:
    """The decoder, over `inputs_embeds` and an additive mask (1, 1, tokens, tokens)."""
    (vocab, dim), (ff_dim, _) = tensors["text.wte"].shape, tensors["text.blocks.0.mlp.fc1.weight"].shape
    config = PhiConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=ff_dim,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv_heads,
        partial_rotary_factor=0.5,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "eager"
    head_dim = dim // n_heads
    state = {
        "model.embed_tokens.weight": tensors["text.wte"],
        **renamed(tensors, "text.post_ln", "model.final_layernorm"),
        **renamed(tensors, "text.lm_head", "lm_head"),
    }
    for i in range(n_layers):
        ours, theirs = f"text.blocks.{i}", f"model.layers.{i}"
        for a, b in (("ln", "input_layernorm"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            state |= renamed(tensors, f"{ours}.{a}", f"{theirs}.{b}")
        state |= renamed(tensors, f"{ours}.attn.proj", f"{theirs}.self_attn.dense")
        widths = (dim, n_kv_heads * head_dim, n_kv_heads * head_dim)
        state |= split_qkv(tensors, f"{ours}.attn.qkv", f"{theirs}.self_attn", widths)
    return loaded(PhiForCausalLM(config), state)


def renamed(tensors: Tensors, ours: str, theirs: str) -> dict[str, Tensor]:
    return {f"{theirs}.{part}": tensors[f"{ours}.{part}"] for part in PARTS}


def split_qkv(tensors: Tensors, ours: str, theirs: str, widths: tuple[int, int, int]) -> dict[str, Tensor]:
    return {
        f"{theirs}.{name}_proj.{part}": rows
        for part in PARTS
        for name, rows in zip("qkv", tensors[f"{ours}.{part}"].split(widths), strict=True)
    }


def loaded(model: Model, state: dict[str, Tensor]) -> Model:
    model.load_state_dict(state, strict=True)
    return model.eval()
