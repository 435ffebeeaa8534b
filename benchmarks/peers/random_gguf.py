"""Moondream 2 as llama.cpp has it, with random weights: a phi2 text file and a float16 vision file.

The names are llama.cpp's; which matrix gets which format in a mix is what its quantizer does with a phi2 model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.peers.gguf_file import F16, F32, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, Format, Tensor, Value, write_gguf
from edgevlm_export.modules.moondream2 import Moondream2Config, TextConfig, VisionConfig

# Quantization -> (general.file_type, format of a tensor, given its name without block and the block's index).
_FILE_TYPES = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15}
QUANTIZATIONS = tuple(_FILE_TYPES)
# Of the image encoder's matrices: format -> (general.file_type, the format).
_VISION_TYPES = {"f16": (1, F16), "q8_0": (7, Q8_0)}
VISION_FORMATS = tuple(_VISION_TYPES)


def write_text(path: Path, config: TextConfig, quantization: str) -> None:
    """The language model's file."""
    write_gguf(path, text_metadata(config, quantization), mixed_tensors(config, quantization))


def write_vision(path: Path, config: Moondream2Config, form: str) -> None:
    """The image encoder's and projection's file, in one of VISION_FORMATS."""
    file_type, matrices = _VISION_TYPES[form]
    write_gguf(path, vision_metadata(config, file_type), list(vision_tensors(config.vision, matrices)))


def mixed_tensors(config: TextConfig, quantization: str) -> list[Tensor]:
    """All tensors of the language model as a quantization has them."""
    return list(text_tensors(config, _MIXES[quantization]))


def possible_quantizations(config: TextConfig) -> tuple[str, ...]:
    """Those whose blocks divide the model's rows: for others Q4_K_M means formats that are not written here."""
    return tuple(name for name in QUANTIZATIONS if all(map(_divides, mixed_tensors(config, name))))


def text_metadata(config: TextConfig, quantization: str) -> dict[str, Value]:
    """Sizes, and a vocabulary of made-up words."""
    head_dim = config.dim // config.n_heads
    return {
        "general.architecture": "phi2",
        "general.name": "moondream2 with random weights",
        "general.file_type": _FILE_TYPES[quantization],
        "general.quantization_version": 2,
        "phi2.context_length": config.max_context,
        "phi2.embedding_length": config.dim,
        "phi2.feed_forward_length": config.ff_dim,
        "phi2.block_count": config.n_layers,
        "phi2.attention.head_count": config.n_heads,
        "phi2.attention.head_count_kv": config.n_kv_heads,
        "phi2.attention.layer_norm_epsilon": 1e-5,
        "phi2.rope.dimension_count": head_dim // 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [f"word{i}" for i in range(config.vocab_size)],
        "tokenizer.ggml.token_type": [1] * config.vocab_size,
        "tokenizer.ggml.merges": ["w o"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
    }


def text_tensors(config: TextConfig, choose: Callable[[str, int, int], Format]) -> Iterator[Tensor]:
    """`choose` takes a matrix's name, its block and the number of blocks."""
    qkv = (config.n_heads + 2 * config.n_kv_heads) * (config.dim // config.n_heads)
    yield _matrix("token_embd", (config.vocab_size, config.dim), choose("token_embd", 0, config.n_layers))
    yield from _norm("output_norm", config.dim)
    yield from _linear("output", (config.vocab_size, config.dim), choose("output", 0, config.n_layers))
    matrices = {
        "attn_qkv": (qkv, config.dim),
        "attn_output": (config.dim, config.dim),
        "ffn_up": (config.ff_dim, config.dim),
        "ffn_down": (config.dim, config.ff_dim),
    }
    for block in range(config.n_layers):
        yield from _norm(f"blk.{block}.attn_norm", config.dim)
        for name, shape in matrices.items():
            yield from _linear(f"blk.{block}.{name}", shape, choose(name, block, config.n_layers))


def vision_metadata(config: Moondream2Config, file_type: int) -> dict[str, Value]:
    """Sizes, and that the last block's output is what is projected: llama.cpp would take the one before."""
    vision = config.vision
    return {
        "general.architecture": "clip",
        "general.name": "moondream2 with random weights",
        "general.file_type": file_type,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": vision.crop_size,
        "clip.vision.patch_size": vision.enc_patch_size,
        "clip.vision.embedding_length": vision.enc_dim,
        "clip.vision.feed_forward_length": vision.enc_ff_dim,
        "clip.vision.block_count": vision.enc_n_layers,
        "clip.vision.attention.head_count": vision.enc_n_heads,
        "clip.vision.attention.layer_norm_epsilon": 1e-5,
        "clip.vision.projection_dim": vision.proj_out_dim,
        "clip.vision.feature_layer": [vision.enc_n_layers],
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }


def vision_tensors(config: VisionConfig, matrices: Format) -> Iterator[Tensor]:
    """One crop's features are projected; those of the tiles, which the newer model joins, llama.cpp does not have."""
    dim, patch = config.enc_dim, config.enc_patch_size
    n_inputs = config.in_channels * patch**2
    shape = (dim, config.in_channels, patch, patch)
    linear = partial(_vision_linear, matrices)
    yield Tensor(name="v.patch_embd.weight", shape=shape, format=F16, std=1 / math.sqrt(n_inputs))
    yield Tensor(name="v.patch_embd.bias", shape=(dim,), format=F32, std=0.02)
    yield Tensor(name="v.position_embd.weight", shape=(config.n_patches, dim), format=F32, std=0.02)
    for block in range(config.enc_n_layers):
        yield from _norm(f"v.blk.{block}.ln1", dim)
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            yield from linear(f"v.blk.{block}.{name}", (dim, dim))
        yield from _norm(f"v.blk.{block}.ln2", dim)
        yield from linear(f"v.blk.{block}.ffn_up", (config.enc_ff_dim, dim))
        yield from linear(f"v.blk.{block}.ffn_down", (dim, config.enc_ff_dim))
    yield from _norm("v.post_ln", dim)
    yield from linear("mm.0", (config.proj_inner_dim, dim))
    yield from linear("mm.2", (config.proj_out_dim, config.proj_inner_dim))


def _vision_linear(matrices: Format, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Rows that the format's blocks do not divide stay in float16, as llama.cpp's quantizer leaves them."""
    return _linear(name, shape, F16 if shape[-1] % matrices.n_values else matrices)


def _divides(tensor: Tensor) -> bool:
    return tensor.shape[-1] % tensor.format.n_values == 0


def _q4_0(name: str, block: int, n_blocks: int) -> Format:
    return Q6_K if name == "output" else Q4_0


def _q8_0(name: str, block: int, n_blocks: int) -> Format:
    return Q8_0


def _q4_k_m(name: str, block: int, n_blocks: int) -> Format:
    eighth = n_blocks // 8
    more_bits = block < eighth or block >= 7 * n_blocks // 8 or (block - eighth) % 3 == 2
    if name == "output" or (name == "ffn_down" and more_bits):
        return Q6_K
    return Q5_K if name == "attn_qkv" else Q4_K


_MIXES: dict[str, Callable[[str, int, int], Format]] = {"Q4_0": _q4_0, "Q8_0": _q8_0, "Q4_K_M": _q4_k_m}


def _matrix(name: str, shape: tuple[int, ...], chosen: Format) -> Tensor:
    if chosen is Q6_K and shape[-1] % Q6_K.n_values:
        chosen = Q8_0  # as llama.cpp's quantizer does
    return Tensor(name=f"{name}.weight", shape=shape, format=chosen, std=1 / math.sqrt(shape[-1]))


def _linear(name: str, shape: tuple[int, ...], chosen: Format) -> Iterator[Tensor]:
    yield _matrix(name, shape, chosen)
    yield Tensor(name=f"{name}.bias", shape=shape[:1], format=F32, std=0.02)


def _norm(name: str, dim: int) -> Iterator[Tensor]:
    yield Tensor(name=f"{name}.weight", shape=(dim,), format=F32, std=0.0, mean=1.0)
    yield Tensor(name=f"{name}.bias", shape=(dim,), format=F32, std=0.02)
