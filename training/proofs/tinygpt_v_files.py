"""TinyGPT-V's checkpoint as published, from the names of its modules: the reverse of the family's layouts.

Where the export folds or merges, there is more than one checkpoint that gives the same model. LoRA's pairs get the
strongest directions of their matrices, and the two projections share theirs, so that nothing can be left out unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from edgevlm_export.families.tinygpt_v.files import LARGE_STAGE, QFORMER_FILE, STAGE_FILE, VISION_FILE
from edgevlm_export.families.tinygpt_v.phi import ALPHA
from edgevlm_export.families.tinygpt_v.prompts import END_OF_TEXT, find_style
from edgevlm_export.families.tinygpt_v.random_weights import describe
from edgevlm_export.modules.tinygpt_v import CHANNELS, QFormerConfig, TextConfig, TinyGptVConfig, VisionConfig
from training.dialogue import Exchange
from training.proofs.learner import VOCAB, write_json

PHI = "phi-2"
POSITIONS = "vision.parametrizations.pos_emb.original"
_RANK = 4
_AFFINE = ("weight", "bias")
_N_PROMPTS = 3000  # so often the words of prompts, which are in all

_Tensors: TypeAlias = dict[str, Tensor]


def write_small_files(folder: Path, config: TinyGptVConfig, said: Iterable[Exchange]) -> None:
    """Phi-2's config.json and tokenizer."""
    phi = folder / PHI
    write_json(phi / "config.json", describe(config.text))
    _make_tokenizer(said).save(str(phi / "tokenizer.json"))


def _make_tokenizer(said: Iterable[Exchange]) -> Tokenizer:
    """Byte-level as Phi-2's, the end of text last."""
    style = find_style(None, LARGE_STAGE)
    prompts = [f"{style.before} <Img>", f"</Img>{style.question}", style.after, "</Img> [caption] Describe this image"]
    texts = (text for one in said for text in (f" {one.prompt}", one.answer))
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=VOCAB - 1, show_progress=False, initial_alphabet=sorted(ByteLevel.alphabet()))
    tokenizer.train_from_iterator([*texts, *prompts * _N_PROMPTS], trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer


def write_tensors(folder: Path, config: TinyGptVConfig, state: Mapping[str, Tensor]) -> None:
    """All files, in float16 but what a stage trained of norms."""
    save_file(_phi(config.text, state), folder / PHI / "model.safetensors", metadata={"format": "pt"})
    (folder / PHI / "model.safetensors").chmod(0o644)
    vision = _halved(_vision(config.vision, state))
    torch.save(vision | _unused_block(vision, config.vision.n_layers), folder / VISION_FILE)
    torch.save({"model": _halved(_qformer(config.qformer, state))}, folder / QFORMER_FILE)
    torch.save({"model": _trained(config.text, state)}, folder / STAGE_FILE.format(LARGE_STAGE))


def _halved(tensors: _Tensors) -> _Tensors:
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def _vision(config: VisionConfig, state: Mapping[str, Tensor]) -> _Tensors:
    """EVA's file. Keys have no bias there: one that all keys share changes nothing."""
    side = config.patch_px
    tensors = {
        "cls_token": state["vision.cls_token"],
        "pos_embed": state[POSITIONS],
        "patch_embed.proj.weight": state["vision.patch_emb.weight"].reshape(-1, CHANNELS, side, side),
        "patch_embed.proj.bias": state["vision.patch_emb.bias"],
    }
    for index in range(config.n_layers):
        block, key = f"vision.blocks.{index}", f"blocks.{index}"
        queries, _, values = state[f"{block}.attn.qkv.bias"].chunk(3)
        tensors |= {
            f"{key}.attn.q_bias": queries,
            f"{key}.attn.v_bias": values,
            f"{key}.attn.qkv.weight": state[f"{block}.attn.qkv.weight"],
        }
        layers = {"norm1": "ln1", "norm2": "ln2", "attn.proj": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
        tensors |= _renamed(state, {f"{key}.{theirs}": f"{block}.{ours}" for theirs, ours in layers.items()})
    return tensors


def _unused_block(tensors: _Tensors, number: int) -> _Tensors:
    """The block that EVA's file has beside those that are used: its shapes, with one zero stored for each."""
    first = "blocks.0."
    names = [name.removeprefix(first) for name in tensors if name.startswith(first)]
    return {f"blocks.{number}.{name}": torch.zeros(1).half().expand(tensors[f"{first}{name}"].shape) for name in names}


def _qformer(config: QFormerConfig, state: Mapping[str, Tensor]) -> _Tensors:
    """BLIP-2's file: the Q-Former without its way for texts."""
    bert = "Qformer.bert"
    tensors = {"query_tokens": state["qformer.queries"]}
    layers = {"ln_vision": "vision.post_ln", f"{bert}.embeddings.LayerNorm": "qformer.query_ln"}
    for index in range(config.n_layers):
        key, layer = f"{bert}.encoder.layer.{index}", f"qformer.layers.{index}"
        layers |= {
            f"{key}.attention.output.dense": f"{layer}.attn.proj",
            f"{key}.attention.output.LayerNorm": f"{layer}.attn_ln",
            f"{key}.intermediate_query.dense": f"{layer}.mlp.fc1",
            f"{key}.output_query.dense": f"{layer}.mlp.fc2",
            f"{key}.output_query.LayerNorm": f"{layer}.mlp_ln",
        }
        tensors |= _apart(state, f"{layer}.attn.qkv", f"{key}.attention.self", ("query", "key", "value"))
        if index % config.cross_every == 0:
            layers |= {
                f"{key}.crossattention.self.query": f"{layer}.cross.q",
                f"{key}.crossattention.output.dense": f"{layer}.cross.proj",
                f"{key}.crossattention.output.LayerNorm": f"{layer}.cross_ln",
            }
            tensors |= _apart(state, f"{layer}.cross.kv", f"{key}.crossattention.self", ("key", "value"))
    return tensors | _renamed(state, layers)


def _renamed(state: Mapping[str, Tensor], layers: Mapping[str, str]) -> _Tensors:
    """Weights and biases by the published name, from the module's."""
    return {f"{theirs}.{leaf}": state[f"{ours}.{leaf}"] for theirs, ours in layers.items() for leaf in _AFFINE}


def _apart(state: Mapping[str, Tensor], ours: str, theirs: str, parts: tuple[str, ...]) -> _Tensors:
    """A layer's rows as several layers."""
    return {
        f"{theirs}.{part}.{leaf}": rows
        for leaf in _AFFINE
        for part, rows in zip(parts, state[f"{ours}.{leaf}"].chunk(len(parts)), strict=True)
    }


def _phi(config: TextConfig, state: Mapping[str, Tensor]) -> _Tensors:
    """Phi-2 with queries, keys and values apart; the weights of its norms are ones, as a stage brings its own."""
    tensors = {
        "model.embed_tokens.weight": state["text.wte"],
        **_renamed(state, {"model.final_layernorm": "text.post_ln", "lm_head": "text.lm_head"}),
        "model.final_layernorm.weight": torch.ones(config.dim),
    }
    for index in range(config.n_layers):
        block, layer = f"text.blocks.{index}", f"model.layers.{index}"
        weight, _, _ = split_lora(_fused(state[f"{block}.attn.qkv.weight"], config))
        bias = _fused(state[f"{block}.attn.qkv.bias"], config)
        for leaf, rows in (("weight", weight), ("bias", bias)):
            heads = rows.reshape(config.n_heads, 3, config.head_dim, *rows.shape[1:])
            for number, part in enumerate(("q_proj", "k_proj", "v_proj")):
                tensors[f"{layer}.self_attn.{part}.{leaf}"] = heads[:, number].flatten(0, 1)
        layers = {"self_attn.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "input_layernorm": "ln"}
        tensors |= _renamed(state, {f"{layer}.{theirs}": f"{block}.{ours}" for theirs, ours in layers.items()})
        tensors[f"{layer}.self_attn.dense.weight"] = split_lora(state[f"{block}.attn.proj.weight"])[0]
        tensors[f"{layer}.input_layernorm.weight"] = torch.ones(config.dim)
    return _halved(tensors)


def _fused(rows: Tensor, config: TextConfig) -> Tensor:
    """Rows [queries, keys, values], each head by head, to head by head [queries, keys, values]."""
    parts = rows.reshape(3, config.n_heads, config.head_dim, *rows.shape[1:])
    return parts.transpose(0, 1).reshape(rows.shape)


def split_lora(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix (out, in) as what is left of it, down (rank, in) and up (out, rank) in float16."""
    left, strengths, right = torch.linalg.svd(weight.float(), full_matrices=False)
    root = strengths[:_RANK].sqrt()
    down = (root[:, None] * right[:_RANK]).half()
    up = (left[:, :_RANK] * root * (_RANK / ALPHA)).half()
    return weight - ALPHA / _RANK * up.float() @ down.float(), down, up


def _trained(config: TextConfig, state: Mapping[str, Tensor]) -> _Tensors:
    """The stage's file."""
    wrapped = "llama_model.base_model.model.model"
    tensors = _projections(state["qformer.project.weight"], state["qformer.project.bias"])
    norms = {f"{wrapped}.final_layernorm": "text.post_ln"}
    for index in range(config.n_layers):
        block, layer = f"text.blocks.{index}", f"{wrapped}.layers.{index}"
        matrices = {
            "query_key_value": _fused(state[f"{block}.attn.qkv.weight"], config),
            "dense": state[f"{block}.attn.proj.weight"],
        }
        for name, weight in matrices.items():
            _, down, up = split_lora(weight)
            tensors |= {f"{layer}.self_attn.{name}.lora_{side}.weight": w for side, w in (("A", down), ("B", up))}
        norms |= {
            f"{layer}.self_attn.q_layernorm": f"{block}.attn.q_ln",
            f"{layer}.self_attn.k_layernorm": f"{block}.attn.k_ln",
            f"{layer}.post_layernorm": f"{block}.attn.post_ln",
            f"{layer}.input_layernorm": f"{block}.ln",
        }
    tensors |= {f"{theirs}.weight": state[f"{ours}.weight"].float() for theirs, ours in norms.items()}
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _projections(weight: Tensor, bias: Tensor) -> _Tensors:
    """The projection (out, in) as two that follow each other."""
    left, strengths, right = torch.linalg.svd(weight.float(), full_matrices=False)
    root = strengths.sqrt()
    first, second = root[:, None] * right, left * root
    first_bias = torch.linspace(-1, 1, len(first))
    return _halved(
        {
            "llama_proj.weight": first,
            "llama_proj.bias": first_bias,
            "llama_proj2.weight": second,
            "llama_proj2.bias": bias - second @ first_bias,
        }
    )
