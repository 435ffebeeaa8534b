"""Checkpoints in every published layout, written from one set of tensors, and tokenizers that belong to none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

Tensors = Mapping[str, Tensor]
Write = Callable[[Path, Tensors], None]

VISUAL = "vision_encoder.encoder.model.visual"
TRAINING_HEADS = {
    "vision.patch_emb.weight": f"{VISUAL}.patch_embed.linear.weight",
    "vision.patch_emb.bias": f"{VISUAL}.patch_embed.linear.bias",
    "vision.pos_emb": f"{VISUAL}.pos_embed",
    "vision.post_ln.weight": f"{VISUAL}.norm.weight",
    "vision.post_ln.bias": f"{VISUAL}.norm.bias",
    "text.wte": "text_model.transformer.embd.wte.weight",
    "text.post_ln.weight": "text_model.lm_head.ln.weight",
    "text.post_ln.bias": "text_model.lm_head.ln.bias",
    "text.lm_head.weight": "text_model.lm_head.linear.weight",
    "text.lm_head.bias": "text_model.lm_head.linear.bias",
    "region.coord_features": "region_model.coordinate_features.weight",
    "region.size_features": "region_model.size_features.weight",
}
TRAINING_PARTS = {
    "vision.proj_mlp": "vision_encoder.projection.mlp",
    "region.coord_encoder": "region_model.coordinate_encoder",
    "region.coord_decoder": "region_model.coordinate_decoder",
    "region.size_encoder": "region_model.size_encoder",
    "region.size_decoder": "region_model.size_decoder",
}
TRAINING_LEAVES = {"attn.qkv": "mixer.Wqkv", "attn.proj": "mixer.out_proj", "ln1": "norm1", "ln2": "norm2"}


def training_key(name: str) -> str:
    """The key that the training scripts give to a tensor, written down from the published table."""
    if name in TRAINING_HEADS:
        return TRAINING_HEADS[name]
    for part, key in TRAINING_PARTS.items():
        if name.startswith(part):
            return key + name.removeprefix(part)
    part, _, layer, rest = name.split(".", 3)
    leaf, _, kind = rest.rpartition(".")
    if part == "text":
        return f"text_model.transformer.h.{layer}.{TRAINING_LEAVES.get(leaf, leaf)}.{kind}"
    return f"{VISUAL}.blocks.{layer}.{TRAINING_LEAVES.get(leaf, leaf) if 'ln' in leaf else leaf}.{kind}"


def write_published(folder: Path, tensors: Tensors) -> None:
    save_file({f"model.{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


def write_bare(folder: Path, tensors: Tensors) -> None:
    save_file(dict(tensors), folder / "model.safetensors")


def write_training(folder: Path, tensors: Tensors) -> None:
    named = {}
    for name, tensor in tensors.items():
        key = training_key(name).replace("text_model.", "text_model._orig_mod.").replace("blocks.", "blocks._orig_mod.")
        named[key] = (tensor.T if name.endswith("_features") else tensor).contiguous()
    save_file(named, folder / "model.safetensors")


def write_sharded(folder: Path, tensors: Tensors) -> None:
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({f"model.{name}": tensors[name] for name in part}, folder / file)
    weight_map = {f"model.{name}": file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_pickle(folder: Path, tensors: Tensors) -> None:
    torch.save(dict(tensors), folder / "pytorch_model.bin")


def write_state_dict(folder: Path, tensors: Tensors) -> None:
    torch.save({"state_dict": dict(tensors), "step": 3}, folder / "final.pt")


def write_old_pickle(folder: Path, tensors: Tensors) -> None:
    torch.save(dict(tensors), folder / "old.pth", _use_new_zipfile_serialization=False)


def write_with_caches(folder: Path, tensors: Tensors) -> None:
    caches = {f"text.blocks.{i}.kv_cache.{part}_cache": torch.zeros(1, 1, 256, 32) for i in (0, 1) for part in "kv"}
    write_published(folder, {**tensors, **caches})


LAYOUTS: dict[str, Write] = {
    "published": write_published,
    "bare": write_bare,
    "training": write_training,
    "sharded": write_sharded,
    "pickle": write_pickle,
    "state_dict": write_state_dict,
    "old_pickle": write_old_pickle,
    "with_caches": write_with_caches,
}


def write_layout(layout: Write, folder: Path, tensors: Tensors, beside: Path) -> Path:
    """A checkpoint folder with the small files of another one."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(beside / name, folder / name)
    layout(folder, tensors)
    return folder


def gpt2_tokenizer() -> Tokenizer:
    """As GPT-2's: bytes first, the words of the published prompts at their ids, the end of text last."""
    tokens = [f"Ġfill{i}" for i in range(50256)]
    tokens[:256] = sorted(ByteLevel.alphabet())
    tokens[tokens.index("Ċ")], tokens[198] = tokens[198], "Ċ"
    tokens[tokens.index(":")], tokens[25] = tokens[25], ":"
    words = {628: "ĊĊ", 24361: "Question", 33706: "Answer", 16438: "Short", 8305: "Ġcaption", 24334: "Caption"}
    for token_id, word in words.items():
        tokens[token_id] = word
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    assert tokenizer.token_to_id("<|endoftext|>") == 50256
    return tokenizer
