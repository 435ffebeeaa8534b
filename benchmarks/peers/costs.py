"""What a model must compute and read at least: operations of a crop and of a prefix, what a token reads."""

from __future__ import annotations

from edgevlm_export.modules.moondream2 import TextConfig, VisionConfig


def crop_operations(config: VisionConfig) -> int:
    """Multiplications and additions of encoding and projecting one crop."""
    dim, patches = config.enc_dim, config.n_patches
    block = 4 * dim**2 + 2 * dim * config.enc_ff_dim
    embedding = config.in_channels * config.enc_patch_size**2 * dim
    projection = config.proj_inner_dim * (2 * dim + config.proj_out_dim)
    attention = 2 * patches * dim  # for each patch: with all keys, and of all values
    return 2 * patches * (config.enc_n_layers * (block + attention) + embedding + projection)


def prefix_operations(config: TextConfig, n_tokens: int) -> int:
    """The same of reading a prefix whose tokens all see each other, without logits."""
    attention = 2 * n_tokens * config.dim
    return 2 * n_tokens * config.n_layers * (block_values(config) + attention)


def block_values(config: TextConfig) -> int:
    """Values of one decoder block's matrices."""
    head_dim = config.dim // config.n_heads
    kv_dim = config.n_kv_heads * head_dim
    return 2 * config.dim**2 + 2 * config.dim * kv_dim + 2 * config.dim * config.ff_dim


def text_values(config: TextConfig) -> int:
    """Values of all matrices that every token is multiplied with: the blocks' and the head's."""
    return config.n_layers * block_values(config) + config.vocab_size * config.dim


def cache_values(config: TextConfig) -> int:
    """Keys and values that the cache keeps of one position."""
    head_dim = config.dim // config.n_heads
    return 2 * config.n_layers * config.n_kv_heads * head_dim
