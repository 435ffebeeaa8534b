"""What a model must compute and read at least: operations of a crop and of a prefix, bytes of a token."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class TokenBytes:
    """Bytes that one more token must read: all weights, and the cache of the positions before it."""

    weights: int
    per_position: float

    def at(self, depth: int) -> float:
        """Bytes after so many positions."""
        return self.weights + self.per_position * depth


def token_bytes(config: TextConfig, weights: int, bytes_per_value: float) -> TokenBytes:
    """With a cache whose values take so many bytes."""
    head_dim = config.dim // config.n_heads
    values = 2 * config.n_layers * config.n_kv_heads * head_dim
    return TokenBytes(weights=weights, per_position=values * bytes_per_value)
