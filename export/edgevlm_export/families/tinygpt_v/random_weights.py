"""Random checkpoints in the published layouts: tiny ones for tests, full-size ones to measure memory and speed.

Phi-2 is written in shards, so that at full size no more than EVA's file is held in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from edgevlm_export.families.tinygpt_v.files import LARGE_STAGE, QFORMER_FILE, STAGE_FILE, VISION_FILE
from edgevlm_export.families.tinygpt_v.prompts import END, END_OF_TEXT, STYLES
from edgevlm_export.families.tinygpt_v.sizes import UNUSED_BLOCKS
from edgevlm_export.modules.tinygpt_v import CHANNELS, QFormerConfig, TextConfig, TinyGptVConfig, VisionConfig

TINY = TinyGptVConfig(
    vision=VisionConfig(dim=176, ff_dim=200, n_layers=2, n_heads=2, patch_px=14, grid=8),
    qformer=QFormerConfig(dim=128, ff_dim=160, n_layers=3, n_heads=2, n_queries=8),
    text=TextConfig(
        dim=160, ff_dim=300, n_layers=2, n_heads=2, rotary_dim=32, vocab_size=512, max_context=384, rope_theta=10000.0
    ),
)
"""Sizes of stage 4; the other stages look at half the side."""
_SHARD_BYTES = 1 << 30
_TINY_SHARD_BYTES = 1 << 19
_LOGIT_SPREAD = 0.25  # standard deviation
_NORM_NOISE = 0.1

Layout: TypeAlias = Literal["split", "fused"]
_Tensors: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which of the published layouts to write: Phi-2's, and what stands in the keys of LoRA's adapters."""

    stage: int = LARGE_STAGE
    layout: Layout = "split"
    adapter: Literal["", ".default"] = ""
    rank: int = 64
    between: int = 4096  # the width between the two projections
    shard_bytes: int = _SHARD_BYTES


def write_shrunken(
    out: Path,
    *,
    stage: int = LARGE_STAGE,
    layout: Layout = "split",
    adapter: Literal["", ".default"] = "",
    seed: int = 0,
) -> None:
    """All files of a model of about a million parameters, with every part of the family, and its tokenizer."""
    form = Form(stage=stage, layout=layout, adapter=adapter, rank=4, between=96, shard_bytes=_TINY_SHARD_BYTES)
    write_random(out, TINY, form, seed=seed)


def write_random(out: Path, config: TinyGptVConfig, form: Form, *, seed: int = 0) -> None:
    """All files of a checkpoint, in float16. `config` is that of stage 4, whatever the stage.

    The same seed gives the same model in every layout.
    """
    draw = Draw(torch.Generator().manual_seed(seed))
    phi = out / "phi-2"
    phi.mkdir(parents=True, exist_ok=True)
    (phi / "config.json").write_text(json.dumps(describe(config.text), indent=2) + "\n", encoding="utf-8")
    make_tokenizer(config.text.vocab_size).save(str(phi / "tokenizer.json"))
    _save_shards(phi, _phi(draw, config.text, form.layout), form.shard_bytes)
    torch.save(_vision(draw, config.vision), out / VISION_FILE)
    torch.save({"model": _qformer(draw, config)}, out / QFORMER_FILE)
    # As the training saves it: only the model matters.
    trained = {"model": _trained(draw, config, form), "optimizer": {"state": {}}, "config": {"run": {}}, "epoch": 3}
    torch.save(trained, out / STAGE_FILE.format(form.stage))


class Draw:
    """Random tensors in float16 that keep activations near one."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=self._generator) * std).half()

    def matrix(self, key: str, n_outputs: int, n_inputs: int) -> _Tensors:
        """Weight and bias of a layer."""
        return {
            f"{key}.weight": self.normal(n_outputs, n_inputs, std=1 / math.sqrt(n_inputs)),
            f"{key}.bias": self.normal(n_outputs, std=0.02),
        }

    def norm(self, key: str, dim: int) -> _Tensors:
        """Weight and bias of a norm, near one and zero."""
        return {
            f"{key}.weight": 1 + self.normal(dim, std=_NORM_NOISE),
            f"{key}.bias": self.normal(dim, std=_NORM_NOISE),
        }


def describe(text: TextConfig) -> dict[str, Any]:
    """Phi-2's config.json."""
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "hidden_act": "gelu_new",
        "hidden_size": text.dim,
        "intermediate_size": text.ff_dim,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": text.max_context,
        "num_attention_heads": text.n_heads,
        "num_hidden_layers": text.n_layers,
        "num_key_value_heads": text.n_heads,
        "partial_rotary_factor": text.rotary_dim / text.head_dim,
        "rope_theta": text.rope_theta,
        "vocab_size": text.vocab_size,
    }


def _phi(draw: Draw, text: TextConfig, layout: Layout) -> Iterator[_Tensors]:
    """Phi-2 part by part. Logits are small: no token of 51,200 is right, and roundings should not seem to choose."""
    yield {"model.embed_tokens.weight": draw.normal(text.vocab_size, text.dim)}
    for index in range(text.n_layers):
        yield _phi_layer(draw, text, f"model.layers.{index}", layout)
    yield {
        **draw.norm("model.final_layernorm", text.dim),
        "lm_head.weight": draw.normal(text.vocab_size, text.dim, std=_LOGIT_SPREAD / math.sqrt(text.dim)),
        "lm_head.bias": draw.normal(text.vocab_size, std=_LOGIT_SPREAD * 0.02),
    }


def _phi_layer(draw: Draw, text: TextConfig, key: str, layout: Layout) -> _Tensors:
    fused = draw.matrix(f"{key}.self_attn.query_key_value", 3 * text.dim, text.dim)
    return {
        **draw.norm(f"{key}.input_layernorm", text.dim),
        **(fused if layout == "fused" else _split(fused, f"{key}.self_attn", text)),
        **draw.matrix(f"{key}.self_attn.dense", text.dim, text.dim),
        **draw.matrix(f"{key}.mlp.fc1", text.ff_dim, text.dim),
        **draw.matrix(f"{key}.mlp.fc2", text.dim, text.ff_dim),
    }


def _split(fused: _Tensors, key: str, text: TextConfig) -> _Tensors:
    """Queries, keys and values apart, from rows that have them head by head."""
    split: _Tensors = {}
    for name, tensor in fused.items():
        heads = tensor.reshape(text.n_heads, 3, text.head_dim, *tensor.shape[1:])
        for index, part in enumerate(("q_proj", "k_proj", "v_proj")):
            leaf = name.rpartition(".")[2]
            split[f"{key}.{part}.{leaf}"] = heads[:, index].reshape(text.dim, *tensor.shape[1:]).contiguous()
    return split


def _save_shards(folder: Path, parts: Iterator[_Tensors], shard_bytes: int) -> None:
    """Safetensors files of about that size and the index that names them."""
    weight_map: dict[str, str] = {}
    shard: _Tensors = {}

    def save() -> None:
        name = f"model-{len(set(weight_map.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, name))
        shard.clear()

    for part in parts:
        shard |= part
        if sum(tensor.nbytes for tensor in shard.values()) >= shard_bytes:
            save()
    if shard:
        save()
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _vision(draw: Draw, vision: VisionConfig) -> _Tensors:
    """EVA's file, with position embeddings for half of stage 4's side and a block that is not used."""
    dim, side = vision.dim, vision.patch_px
    patches = draw.matrix("patch_embed.proj", dim, CHANNELS * side * side)
    tensors = {
        "cls_token": draw.normal(1, 1, dim),
        "pos_embed": draw.normal(1, 1 + (vision.grid // 2) ** 2, dim),
        **patches,
        "patch_embed.proj.weight": patches["patch_embed.proj.weight"].reshape(dim, CHANNELS, side, side),
    }
    for index in range(vision.n_layers + UNUSED_BLOCKS):
        key = f"blocks.{index}"
        qkv = draw.matrix(f"{key}.attn.qkv", 3 * dim, dim)
        tensors |= {
            **draw.norm(f"{key}.norm1", dim),
            f"{key}.attn.q_bias": draw.normal(dim, std=_NORM_NOISE),
            f"{key}.attn.v_bias": draw.normal(dim, std=_NORM_NOISE),
            f"{key}.attn.qkv.weight": qkv[f"{key}.attn.qkv.weight"],
            **draw.matrix(f"{key}.attn.proj", dim, dim),
            **draw.norm(f"{key}.norm2", dim),
            **draw.matrix(f"{key}.mlp.fc1", vision.ff_dim, dim),
            **draw.matrix(f"{key}.mlp.fc2", dim, vision.ff_dim),
        }
    return tensors


def _qformer(draw: Draw, config: TinyGptVConfig) -> _Tensors:
    """BLIP-2's file, with a little of its way for texts and of what its own language model needed."""
    sizes, bert = config.qformer, "Qformer.bert"
    tensors = {
        "query_tokens": draw.normal(1, sizes.n_queries, sizes.dim),
        **draw.norm("ln_vision", config.vision.dim),
        **draw.norm(f"{bert}.embeddings.LayerNorm", sizes.dim),
        f"{bert}.embeddings.position_ids": torch.arange(8)[None],
        f"{bert}.embeddings.word_embeddings.weight": draw.normal(8, sizes.dim),
        f"{bert}.embeddings.position_embeddings.weight": draw.normal(8, sizes.dim),
        **draw.matrix("t5_proj", 8, sizes.dim),
    }
    for index in range(sizes.n_layers):
        tensors |= _qformer_layer(draw, config, f"{bert}.encoder.layer.{index}", looks=index % sizes.cross_every == 0)
    return tensors


def _qformer_layer(draw: Draw, config: TinyGptVConfig, key: str, *, looks: bool) -> _Tensors:
    dim, ff_dim = config.qformer.dim, config.qformer.ff_dim
    tensors = _bert_attention(draw, f"{key}.attention", dim, dim)
    if looks:
        tensors |= _bert_attention(draw, f"{key}.crossattention", dim, config.vision.dim)
    for way in ("", "_query"):
        tensors |= draw.matrix(f"{key}.intermediate{way}.dense", ff_dim, dim)
        tensors |= draw.matrix(f"{key}.output{way}.dense", dim, ff_dim)
        tensors |= draw.norm(f"{key}.output{way}.LayerNorm", dim)
    return tensors


def _bert_attention(draw: Draw, key: str, dim: int, other_dim: int) -> _Tensors:
    return {
        **draw.matrix(f"{key}.self.query", dim, dim),
        **draw.matrix(f"{key}.self.key", dim, other_dim),
        **draw.matrix(f"{key}.self.value", dim, other_dim),
        **draw.matrix(f"{key}.output.dense", dim, dim),
        **draw.norm(f"{key}.output.LayerNorm", dim),
    }


def _trained(draw: Draw, config: TinyGptVConfig, form: Form) -> _Tensors:
    """One stage's own tensors."""
    text, wrapped = config.text, "llama_model.base_model.model.model"
    tensors = {
        **draw.matrix("llama_proj", form.between, config.qformer.dim),
        **draw.matrix("llama_proj2", text.dim, form.between),
        f"{wrapped}.final_layernorm.weight": _only_weight(draw, text.dim),
        "Qformer.bert.embeddings.position_ids": torch.arange(8)[None],
    }
    for index in range(text.n_layers):
        layer = f"{wrapped}.layers.{index}"
        for matrix, n_outputs in (("query_key_value", 3 * text.dim), ("dense", text.dim)):
            lora = f"{layer}.self_attn.{matrix}.lora"
            tensors[f"{lora}_A{form.adapter}.weight"] = draw.normal(form.rank, text.dim, std=1 / math.sqrt(text.dim))
            tensors[f"{lora}_B{form.adapter}.weight"] = draw.normal(n_outputs, form.rank, std=0.1)
        for norm, dim in (("q_layernorm", text.head_dim), ("k_layernorm", text.head_dim)):
            tensors[f"{layer}.self_attn.{norm}.weight"] = _only_weight(draw, dim)
        for norm in ("post_layernorm", "input_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = _only_weight(draw, text.dim)
    return tensors


def _only_weight(draw: Draw, dim: int) -> Tensor:
    """A norm's weight, which is in float32 in the published files; its bias was not trained."""
    return draw.norm("norm", dim)["norm.weight"].float()


def make_tokenizer(n_tokens: int) -> Tokenizer:
    """A byte-level tokenizer as Phi-2's: bytes, END, words of the prompts as far as they fit, the end of text last."""
    splitter = ByteLevel(add_prefix_space=False)
    texts = (END, *(f"{style.before} {style.question} {style.after}" for style in STYLES.values()))
    tokens, merges = sorted(ByteLevel.alphabet()), []
    for word in dict.fromkeys(word for text in texts for word, _ in splitter.pre_tokenize_str(text)):
        new = [pair for i in range(1, len(word)) if (pair := (word[:i], word[i]))[0] + pair[1] not in tokens]
        if len(tokens) + len(new) < n_tokens:
            merges += new
            tokens += [start + end for start, end in new]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer
