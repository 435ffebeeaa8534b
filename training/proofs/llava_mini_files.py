"""LLaVA-Mini's checkpoint as published, from the names of its modules: the reverse of the family's layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from edgevlm_export.families.llava_mini import TOWER_FOLDER
from edgevlm_export.families.llava_mini.layouts import tower_shapes
from edgevlm_export.families.llava_mini.random_weights import UNUSED_LAYERS, describe, describe_tower, make_tokenizer
from edgevlm_export.families.processor import PREPROCESSOR
from edgevlm_export.modules.clip_vision import CHANNELS
from edgevlm_export.modules.llama import LlamaConfig
from edgevlm_export.modules.llava_mini import LlavaMiniConfig
from training.dialogue import Exchange
from training.proofs.learner import VOCAB, write_json

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] != 'system' %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}"
)
"""Llama 3's chat without a system's words and dates, which say nothing here."""
_ROLES = ["user\n\n", "assistant\n\n"]
_N_ROLES = 2000  # so often, as each begins a prompt
_STOPS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
_START, _END = "<|begin_of_text|>", "<|eot_id|>"


def write_small_files(folder: Path, config: LlavaMiniConfig, said: Iterable[Exchange]) -> None:
    """config.json, the tokenizer's and the image processor's files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = (text for one in said for text in (one.prompt, one.answer))
    tokenizer = make_tokenizer(VOCAB, [*texts, *_ROLES * _N_ROLES], n_trained=VOCAB)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"bos_token": _START, "eos_token": _END, "chat_template": _TEMPLATE})
    ends = [tokenizer.token_to_id(token) for token in _STOPS]
    write_json(folder / "generation_config.json", {"bos_token_id": tokenizer.token_to_id(_START), "eos_token_id": ends})
    write_json(folder / "config.json", describe(config))
    tower, side = folder / TOWER_FOLDER, config.vision.image_px
    stored = replace(config.vision, n_layers=config.vision.n_layers + UNUSED_LAYERS)
    write_json(tower / "config.json", {"model_type": "clip", "vision_config": describe_tower(stored)})
    # Scenes are not squares, and what a center crop leaves out would be asked about.
    squeezed = {"size": {"height": side, "width": side}, "do_center_crop": False, "resample": 3}
    write_json(tower / PREPROCESSOR, {"image_processor_type": "CLIPImageProcessor", **squeezed})


def write_tensors(folder: Path, config: LlavaMiniConfig, state: Mapping[str, Tensor]) -> None:
    """model.safetensors of the checkpoint and of the tower beside it, in float16."""
    _save(folder, _own(config, state))
    _save(folder / TOWER_FOLDER, {f"vision_model.{name}": tensor for name, tensor in _tower(config, state).items()})


def _save(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    unfinished = folder / "model.safetensors.tmp"
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, unfinished, {"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.rename(folder / "model.safetensors")


def _own(config: LlavaMiniConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {
        "model.embed_tokens.weight": state["text.wte"],
        "model.norm.weight": state["text.norm.weight"],
        "lm_head.weight": state["text.lm_head.weight"],
        "model.compressor.pos_embed": state["compressor.positions"],
        "model.compressor.query": state["compressor.query"],
        "model.compressor.attn.in_proj_weight": state["compressor.in_weight"],
        "model.compressor.attn.in_proj_bias": state["compressor.in_bias"],
    }
    renamed = {
        "model.compressor.attn.out_proj": "compressor.out_proj",
        "model.compressor.ln_q": "compressor.ln_q",
        "model.compressor.ln_kv": "compressor.ln_kv",
        "model.mm_projector.0": "projector.fc1",
        "model.mm_projector.2": "projector.fc2",
    }
    for theirs, ours in renamed.items():
        tensors |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for stack, key, count in (
        ("text", "model.layers", config.text.n_layers),
        ("prefusion", "model.prefusion_layers", config.n_prefusion_layers),
    ):
        for index in range(count):
            tensors |= _layer(config.text, state, f"{stack}.blocks.{index}", f"{key}.{index}")
    return tensors


def _layer(config: LlamaConfig, state: Mapping[str, Tensor], block: str, layer: str) -> dict[str, Tensor]:
    key_dim = config.n_kv_heads * config.head_dim
    queries, keys, values = state[f"{block}.attn.qkv.weight"].split((config.dim, key_dim, key_dim))
    gate, up = state[f"{block}.mlp.gate_up.weight"].chunk(2)
    return {
        f"{layer}.input_layernorm.weight": state[f"{block}.ln1.weight"],
        f"{layer}.post_attention_layernorm.weight": state[f"{block}.ln2.weight"],
        f"{layer}.self_attn.q_proj.weight": queries,
        f"{layer}.self_attn.k_proj.weight": keys,
        f"{layer}.self_attn.v_proj.weight": values,
        f"{layer}.self_attn.o_proj.weight": state[f"{block}.attn.proj.weight"],
        f"{layer}.mlp.gate_proj.weight": gate,
        f"{layer}.mlp.up_proj.weight": up,
        f"{layer}.mlp.down_proj.weight": state[f"{block}.mlp.down.weight"],
    }


def _tower(config: LlavaMiniConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's tensors; those of the layer behind the last that is used, and of the last norm, are zero."""
    vision = config.vision
    stored = replace(vision, n_layers=vision.n_layers + UNUSED_LAYERS)
    tensors = {name: torch.zeros(shape) for name, shape in tower_shapes(stored).items()}
    tensors |= {f"post_layernorm.{kind}": torch.zeros(vision.dim) for kind in ("weight", "bias")}
    side = vision.patch_px
    tensors |= {
        "embeddings.class_embedding": state["vision.class_emb"],
        "embeddings.patch_embedding.weight": state["vision.patch_emb.weight"].reshape(-1, CHANNELS, side, side),
        "embeddings.position_embedding.weight": state["vision.pos_emb"],
        "pre_layrnorm.weight": state["vision.pre_ln.weight"],
        "pre_layrnorm.bias": state["vision.pre_ln.bias"],
    }
    renamed = {"layer_norm1": "ln1", "layer_norm2": "ln2", "self_attn.out_proj": "attn.proj", "mlp.fc1": "fc1"}
    renamed["mlp.fc2"] = "fc2"
    for index in range(vision.n_layers):
        block, layer = f"vision.blocks.{index}", f"encoder.layers.{index}"
        for kind in ("weight", "bias"):
            tensors |= {f"{layer}.{theirs}.{kind}": state[f"{block}.{ours}.{kind}"] for theirs, ours in renamed.items()}
            parts = zip("qkv", state[f"{block}.attn.qkv.{kind}"].chunk(3), strict=True)
            tensors |= {f"{layer}.self_attn.{part}_proj.{kind}": rows for part, rows in parts}
    return tensors
