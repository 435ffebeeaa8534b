"""What a model must compute and read at least: operations of an image and of its prefix, what a token reads."""

from __future__ import annotations

from dataclasses import dataclass

from edgevlm_export.modules.decoder import TextSizes


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Multiplications and additions, and values that are read.

    `crop_operations` are those of encoding and projecting one crop, `prefix_operations` those of reading it and the
    words before it, without logits. `text_values` has the matrices that every token is multiplied with, `cache_values`
    what the cache keeps of one position.
    """

    crop_operations: int
    prefix_operations: int
    text_values: int
    cache_values: int


def layer_operations(n_tokens: int, values: int, n_pairs: int, dim: int) -> int:
    """Operations of a layer, each token times the `values` of its matrices.

    Attention is `dim` wide, over pairs of a token and one that it sees: a score, and a part of a sum.
    """
    return 2 * (n_tokens * values + 2 * n_pairs * dim)


def causal_pairs(n_tokens: int) -> int:
    """Pairs of a token and one that it sees, where each sees itself and what is before it."""
    return n_tokens * (n_tokens + 1) // 2


def encoder_values(dim: int, ff_dim: int) -> int:
    """Values of the matrices of an encoder's layer, as all of the vision towers here have them."""
    return 4 * dim**2 + 2 * dim * ff_dim


def block_values(config: TextSizes, *, mlp_matrices: int = 2) -> int:
    """Values of one decoder block's matrices."""
    kv_dim = config.n_kv_heads * (config.dim // config.n_heads)
    return 2 * config.dim**2 + 2 * config.dim * kv_dim + mlp_matrices * config.dim * config.ff_dim


def text_values(config: TextSizes, *, mlp_matrices: int = 2) -> int:
    """Values of all matrices that every token is multiplied with: the blocks' and the head's."""
    return config.n_layers * block_values(config, mlp_matrices=mlp_matrices) + config.vocab_size * config.dim


def cache_values(config: TextSizes) -> int:
    """Keys and values that the cache keeps of one position."""
    return 2 * config.n_layers * config.n_kv_heads * (config.dim // config.n_heads)
