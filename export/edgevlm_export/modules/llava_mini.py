"""LLaVA-Mini: CLIP's features, compressed to a few tokens, mixed with the words asked before Llama sees either.

Parameters that only constants go into are folded: see `fold_queries` and `fold_key_positions`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevlm_export.modules.clip_vision import ClipVision, ClipVisionConfig
from edgevlm_export.modules.layers import LayerNorm, Linear, Mlp, full_attention
from edgevlm_export.modules.llama import Llama, LlamaConfig, LlamaLayers, some_layers

HEAD_DIM = 128  # of the compressor's attention


@dataclass(frozen=True, kw_only=True)
class LlavaMiniConfig:
    """All sizes of one checkpoint: `compressor_size` ** 2 tokens are left of an image; it is looked at as a whole, and
    where `resolution_ratio` is above 1 also in ratio x ratio tiles."""

    text: LlamaConfig
    vision: ClipVisionConfig
    compressor_size: int
    n_prefusion_layers: int
    resolution_ratio: int

    @property
    def n_compressed(self) -> int:
        return self.compressor_size**2

    @property
    def n_tiles(self) -> int:
        return self.resolution_ratio**2 if self.resolution_ratio > 1 else 0

    @property
    def n_features(self) -> int:
        """Patches of all tiles and of the whole image."""
        return (self.n_tiles + 1) * self.vision.n_patches

    @property
    def compressed_grid(self) -> int:
        """Patches along one side of what is compressed: all tiles, or the image."""
        return self.vision.grid * self.resolution_ratio

    @property
    def prefusion(self) -> LlamaConfig:
        """Layers that read an image and as many words as the decoder."""
        n_tokens = self.n_features + self.n_compressed + self.text.max_context
        return some_layers(self.text, self.n_prefusion_layers, n_tokens)


class Compressor(nn.Module):
    """Learned queries, which are constants, that attend to all patches.

    Where there is one query, the positions of keys add the same to the scores of all, and are left out.
    """

    def __init__(self, dim: int, n_queries: int, n_keys: int) -> None:
        super().__init__()
        self.n_heads = n_compressor_heads(dim)
        self.ln = LayerNorm(dim)
        self.queries = nn.Parameter(torch.empty(n_queries, dim))
        self.key = Linear(dim, dim, bias=False)
        self.key_positions = nn.Parameter(torch.empty(n_keys, dim)) if n_queries > 1 else None
        self.value = Linear(dim, dim)
        self.proj = Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Features (1, patches, dim) to (1, queries, dim)."""
        x = self.ln(features)
        keys = self.key(x)
        if self.key_positions is not None:
            keys = keys + self.key_positions
        y: Tensor = self.proj(full_attention(self.n_heads)(self.queries[None], keys, self.value(x)))
        return y


class LlavaMini(nn.Module):
    """The whole model."""

    def __init__(self, config: LlavaMiniConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = ClipVision(config.vision)
        self.compressor = Compressor(config.vision.dim, config.n_compressed, config.compressed_grid**2)
        self.projector = Mlp(config.vision.dim, config.text.dim, config.text.dim, exact=True)
        self.prefusion = LlamaLayers(config.prefusion)
        self.text = Llama(config.text)


def project(config: LlavaMiniConfig, compressor: Compressor, projector: Mlp, features: Tensor) -> Tensor:
    """Features (1, patches of all tiles row by row and of the whole image, vision dim) to tokens (1, n, dim).

    The tokens are the tiles' patches as one raster, the whole image's, and the compressed ones.
    """
    raster = features
    if config.n_tiles:
        ratio, grid = config.resolution_ratio, config.vision.grid
        n_tiled = config.n_tiles * config.vision.n_patches
        tiles = features[:, :n_tiled].reshape(ratio, ratio, grid, grid, -1)
        raster = tiles.transpose(1, 2).reshape(1, n_tiled, -1)
        features = torch.cat((raster, features[:, n_tiled:]), dim=1)
    y: Tensor = projector(torch.cat((features, compressor(raster)), dim=1))
    return y


def n_compressor_heads(dim: int) -> int:
    """Heads of the compressor's attention."""
    return max(1, dim // HEAD_DIM)


@dataclass(frozen=True, kw_only=True)
class CompressorTensors:
    """What is published of the query side: `query` and `positions` (queries, dim), the norm's and the projections'.

    `in_weight` (3 * dim, dim) and `in_bias` (3 * dim,) are of queries, keys and values.
    """

    query: Tensor
    positions: Tensor
    ln_weight: Tensor
    ln_bias: Tensor
    in_weight: Tensor
    in_bias: Tensor


def fold_queries(published: CompressorTensors) -> Tensor:
    """Projected queries (queries, dim)."""
    dim = published.query.shape[1]
    normed = functional.layer_norm(published.query, (dim,), published.ln_weight, published.ln_bias)
    return functional.linear(normed + published.positions, published.in_weight[:dim], published.in_bias[:dim])


def fold_key_positions(published: CompressorTensors, n_keys: int) -> Tensor:
    """What positions and bias add to the projected keys (keys, dim)."""
    n_queries, dim = published.positions.shape
    side, grid = math.isqrt(n_queries), math.isqrt(n_keys)
    positions = published.positions
    if side != grid:
        map_ = positions.reshape(1, side, side, dim).permute(0, 3, 1, 2)
        resized = functional.interpolate(map_, size=(grid, grid), mode="bicubic", align_corners=False)
        positions = resized.permute(0, 2, 3, 1).reshape(n_keys, dim)
    keys = slice(dim, 2 * dim)
    return functional.linear(positions, published.in_weight[keys], published.in_bias[keys])
