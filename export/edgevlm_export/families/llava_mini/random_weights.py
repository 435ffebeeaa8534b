"""Random checkpoints in the published layout: tiny ones for tests, full-size ones to measure memory and speed.

Written in shards, so that no more than one of them is in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from edgevlm_export.families.llava_mini.config import MODEL_TYPE
from edgevlm_export.families.llava_mini.layouts import TOWER, published_shapes, tower_shapes
from edgevlm_export.families.llava_mini.prompts import CAPTIONS, SYSTEM
from edgevlm_export.modules.clip_vision import ClipVisionConfig
from edgevlm_export.modules.llama import LlamaConfig, RopeScaling
from edgevlm_export.modules.llava_mini import LlavaMiniConfig

FULL = LlavaMiniConfig(
    text=LlamaConfig(
        dim=4096,
        ff_dim=14336,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        vocab_size=128256,
        max_context=4096,
        rope_theta=500000.0,
        rope_scaling=RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
        ),
        norm_eps=1e-5,
    ),
    vision=ClipVisionConfig(dim=1024, ff_dim=4096, n_layers=23, n_heads=16, patch_px=14, image_px=336),
    compressor_size=1,
    n_prefusion_layers=4,
    resolution_ratio=1,
)
"""The published model."""
TINY = LlavaMiniConfig(
    text=replace(
        FULL.text,
        dim=64,
        ff_dim=160,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        vocab_size=512,
        max_context=512,
        rope_scaling=RopeScaling(
            factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
        ),
    ),
    vision=ClipVisionConfig(dim=128, ff_dim=192, n_layers=2, n_heads=2, patch_px=14, image_px=56),
    compressor_size=1,
    n_prefusion_layers=2,
    resolution_ratio=1,
)
Tower = Literal["folder", "inside", "none"]
"""Where the vision tower is: in a folder of its own beside the checkpoint, within it, or not there."""

UNUSED_LAYERS = 1  # of the tower: its features are those before its last layer
_SHARD_BYTES = 2 << 30
_TRAINED_TOKENS = 500
# How Llama 3's tokenizer cuts a text before it joins letters.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_BOS = "<|begin_of_text|>"
_LOGIT_SPREAD = 0.25  # standard deviation
_SPECIALS = (_BOS, "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>")
_CORPUS = (SYSTEM, *CAPTIONS.values(), "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n user system")


def write_shrunken(
    out: Path,
    *,
    compressor_size: int = 1,
    resolution_ratio: int = 1,
    tower: Tower = "folder",
    shard_bytes: int = _SHARD_BYTES,
    seed: int = 0,
) -> None:
    """A checkpoint of about 0.6 million parameters with every part of the family, and its tokenizer."""
    config = replace(TINY, compressor_size=compressor_size, resolution_ratio=resolution_ratio)
    write_random(out, config, tower=tower, shard_bytes=shard_bytes, seed=seed)


def write_random(
    out: Path, config: LlavaMiniConfig, *, tower: Tower = "folder", shard_bytes: int = _SHARD_BYTES, seed: int = 0
) -> None:
    """Tensors in bfloat16 and all small files; needs memory for one shard."""
    out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = make_tokenizer(config.text.vocab_size)
    stops = [tokenizer.token_to_id(token) for token in ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")]
    tokenizer.save(str(out / "tokenizer.json"))
    _write_json(out / "config.json", describe(config))
    _write_json(out / "generation_config.json", {"bos_token_id": tokenizer.token_to_id(_BOS), "eos_token_id": stops})
    _write_json(out / "tokenizer_config.json", {"bos_token": _BOS, "eos_token": "<|eot_id|>"})
    vision = replace(config.vision, n_layers=config.vision.n_layers + UNUSED_LAYERS)
    last_norm = {f"post_layernorm.{kind}": (vision.dim,) for kind in ("weight", "bias")}
    of_tower, shapes = tower_shapes(vision) | last_norm, published_shapes(config)
    if tower == "inside":
        shapes |= {TOWER + name: shape for name, shape in of_tower.items()}
    if tower == "folder":
        folder = out / "vision_tower"
        folder.mkdir(exist_ok=True)
        _write_json(folder / "config.json", {"model_type": "clip", "vision_config": describe_tower(vision)})
        size = {"size": {"shortest_edge": vision.image_px}, "crop_size": vision.image_px, "resample": 3}
        _write_json(folder / "preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor", **size})
        named = {f"vision_model.{name}": shape for name, shape in of_tower.items()}
        _write_shards(folder, named, config, generator, shard_bytes)
    _write_shards(out, shapes, config, generator, shard_bytes)


def describe(config: LlavaMiniConfig) -> dict[str, Any]:
    """config.json as published."""
    text, scaling = config.text, config.text.rope_scaling
    return {
        "architectures": ["LlavaMiniLlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        "hidden_size": text.dim,
        "intermediate_size": text.ff_dim,
        "num_hidden_layers": text.n_layers,
        "num_attention_heads": text.n_heads,
        "num_key_value_heads": text.n_kv_heads,
        "vocab_size": text.vocab_size,
        "rope_theta": text.rope_theta,
        "rope_scaling": None if scaling is None else {"rope_type": "llama3", **asdict(scaling)},
        "rms_norm_eps": text.norm_eps,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": text.max_context,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "mm_hidden_size": config.vision.dim,
        "mm_vision_select_layer": -1 - UNUSED_LAYERS,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "flat",
        "image_aspect_ratio": "square",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "compressor_size": config.compressor_size,
        "prefusion_layer_num": config.n_prefusion_layers,
        "resolution_ratio": config.resolution_ratio,
    }


def describe_tower(vision: ClipVisionConfig) -> dict[str, Any]:
    """The part of the tower's config.json that tells sizes."""
    return {
        "hidden_size": vision.dim,
        "intermediate_size": vision.ff_dim,
        "num_hidden_layers": vision.n_layers,
        "num_attention_heads": vision.n_heads,
        "image_size": vision.image_px,
        "patch_size": vision.patch_px,
        "hidden_act": vision.activation,
        "layer_norm_eps": 1e-5,
    }


def _write_shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    config: LlavaMiniConfig,
    generator: torch.Generator,
    shard_bytes: int,
) -> None:
    """model.safetensors, or numbered shards and their index where one would be larger than `shard_bytes`."""
    shards = list(_shards(shapes, shard_bytes))
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(files) > 1 else ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: _random(name, shapes[name], config, generator).bfloat16() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _shards(shapes: Mapping[str, tuple[int, ...]], shard_bytes: int) -> Iterator[list[str]]:
    names: list[str] = []
    total = 0
    for name, shape in shapes.items():
        n_bytes = 2 * math.prod(shape)
        if names and total + n_bytes > shard_bytes:
            yield names
            names, total = [], 0
        names.append(name)
        total += n_bytes
    yield names


def _random(name: str, shape: tuple[int, ...], config: LlavaMiniConfig, generator: torch.Generator) -> Tensor:
    """Matrices keep their input's magnitude, norms start as the identity, positions are the published ones.

    Logits are small: no token of 128,256 is right, and roundings should not seem to choose between equals.
    """
    if name.endswith("pos_embed"):
        return sine_positions(config.compressor_size, shape[1])
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return noise.mul_(0.02)
    if "norm" in name or "ln_" in name or "layrnorm" in name:
        return noise.mul_(0.1).add_(1)
    if len(shape) == 1 or "position" in name or name.endswith("query"):
        return noise.mul_(0.5)
    if name.startswith("lm_head"):
        noise.mul_(_LOGIT_SPREAD)
    return noise.div_(1.0 if "embed_tokens" in name else math.sqrt(math.prod(shape[1:])))


def sine_positions(side: int, dim: int) -> Tensor:
    """The frozen positions (side * side, dim) of the compressor's queries: sines and cosines of the column, then of the
    row, as masked autoencoders have them."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = (torch.outer(places.flatten().double(), frequencies) for places in (cols, rows))
    return torch.cat([part for each in angles for part in (each.sin(), each.cos())], dim=1).float()


def make_tokenizer(n_tokens: int, texts: Iterable[str] = _CORPUS, *, n_trained: int = _TRAINED_TOKENS) -> Tokenizer:
    """A byte-level tokenizer like Llama 3's: "!" is 0, control tokens come last, and one starts every text.

    At most `n_trained` come from the texts.
    """
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = Sequence(
        [Split(Regex(_WORDS), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trained.decoder = ByteLevelDecoder()
    n_words = n_tokens - len(_SPECIALS)
    size = min(n_words, n_trained)
    trainer = BpeTrainer(vocab_size=size, min_frequency=1, show_progress=False, initial_alphabet=ByteLevel.alphabet())
    trained.train_from_iterator(texts, trainer)
    data = json.loads(trained.to_str())
    vocab = data["model"]["vocab"]
    vocab |= {f"Ġword{i}": i for i in range(len(vocab), n_words)}
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIALS])
    start = (_BOS, tokenizer.token_to_id(_BOS))
    tokenizer.post_processor = TemplateProcessing(single=f"{_BOS} $A", pair=None, special_tokens=[start])
    return tokenizer


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
