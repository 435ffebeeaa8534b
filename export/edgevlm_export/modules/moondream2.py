"""Moondream 2 as torch modules whose parameter names are the published checkpoint's keys.

Vision: SigLIP-like encoder on flattened patches, no class token. Text: Phi-like decoder with parallel attention and
MLP. Region: coordinates and sizes to embeddings and back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from edgevlm_export.modules.decoder import ParallelDecoder
from edgevlm_export.modules.layers import (
    Attention,
    LayerNorm,
    Linear,
    Mlp,
    PreNormBlock,
    Rotary,
    full_attention,
    patchify,
    run_blocks,
)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder. Field names are those of config.json."""

    dim: int = 2048
    ff_dim: int = 8192
    n_layers: int = 24
    n_heads: int = 32
    n_kv_heads: int = 32
    vocab_size: int = 51200
    max_context: int = 2048
    prefix_attn: int = 730


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder and its projection. Field names are those of config.json."""

    enc_dim: int = 1152
    enc_ff_dim: int = 4304
    enc_n_layers: int = 27
    enc_n_heads: int = 16
    enc_patch_size: int = 14
    crop_size: int = 378
    in_channels: int = 3
    proj_inner_dim: int = 8192
    proj_out_dim: int = 2048
    max_crops: int = 12
    overlap_margin: int = 4

    @property
    def grid(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.enc_patch_size

    @property
    def n_patches(self) -> int:
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class RegionConfig:
    """Coordinates and sizes. Field names are those of config.json."""

    dim: int = 2048
    coord_feat_dim: int = 256
    coord_out_dim: int = 1024
    size_feat_dim: int = 512
    size_out_dim: int = 2048
    inner_dim: int = 8192


@dataclass(frozen=True, kw_only=True)
class Moondream2Config:
    """All sizes of one checkpoint; the defaults are the 2B model's."""

    text: TextConfig = field(default_factory=TextConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    region: RegionConfig = field(default_factory=RegionConfig)


class VisionBlock(PreNormBlock):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__(
            partial(LayerNorm, config.enc_dim),
            Attention(config.enc_dim, config.enc_n_heads, config.enc_n_heads),
            Mlp(config.enc_dim, config.enc_ff_dim),
        )


class Vision(nn.Module):
    """Crops to patch features, and the features of an image to its tokens."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        patch_values = config.in_channels * config.enc_patch_size**2
        self.patch_emb = Linear(patch_values, config.enc_dim)
        self.pos_emb = nn.Parameter(torch.empty(1, config.n_patches, config.enc_dim))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.enc_n_layers))
        self.post_ln = LayerNorm(config.enc_dim)
        self.proj_mlp = Mlp(2 * config.enc_dim, config.proj_inner_dim, config.proj_out_dim)

    def encode(self, crops: Tensor) -> Tensor:
        """Normalized crops (crops, 3, side, side) to features (crops, patches, enc_dim)."""
        x = self.patch_emb(patchify(crops, self.config.enc_patch_size)) + self.pos_emb
        y: Tensor = self.post_ln(run_blocks(self.blocks, x, full_attention(self.config.enc_n_heads)))
        return y

    def project(self, features: Tensor) -> Tensor:
        """Global and pooled local features (images, patches, 2 * enc_dim) to tokens (images, patches, dim)."""
        y: Tensor = self.proj_mlp(features)
        return y


class Text(ParallelDecoder):
    """The decoder over embeddings."""

    def __init__(self, config: TextConfig) -> None:
        attention = partial(Attention, config.dim, config.n_heads, config.n_kv_heads)
        super().__init__(config, attention, Rotary(config.dim // (2 * config.n_heads), config.max_context))


def prefix_mask(n_tokens: int, n_prefix: int) -> Tensor:
    """Boolean (tokens, tokens): the first n_prefix tokens see each other, all later ones are causal."""
    mask = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
    mask[:n_prefix, :n_prefix] = True
    return mask


class Region(nn.Module):
    """Fourier features of coordinates and sizes to embeddings, hidden states to bins."""

    def __init__(self, config: RegionConfig) -> None:
        super().__init__()
        self.coord_features = nn.Parameter(torch.empty(1, config.coord_feat_dim // 2))
        self.size_features = nn.Parameter(torch.empty(2, config.size_feat_dim // 2))
        self.coord_encoder = Linear(config.coord_feat_dim, config.dim)
        self.size_encoder = Linear(config.size_feat_dim, config.dim)
        self.coord_decoder = Mlp(config.dim, config.inner_dim, config.coord_out_dim)
        self.size_decoder = Mlp(config.dim, config.inner_dim, config.size_out_dim)

    def encode_coordinate(self, coordinate: Tensor) -> Tensor:
        """Fractions (n, 1) to embeddings (n, dim)."""
        y: Tensor = self.coord_encoder(fourier_features(coordinate, self.coord_features))
        return y

    def encode_size(self, size: Tensor) -> Tensor:
        """Widths and heights as fractions (n, 2) to embeddings (n, dim)."""
        y: Tensor = self.size_encoder(fourier_features(size, self.size_features))
        return y

    def decode_coordinate(self, hidden: Tensor) -> Tensor:
        """Hidden states (n, dim) to logits of bins (n, coord_bins)."""
        y: Tensor = self.coord_decoder(hidden)
        return y

    def decode_size(self, hidden: Tensor) -> Tensor:
        """Hidden states (n, dim) to logits of bins for width and height (n, 2, size_bins)."""
        logits: Tensor = self.size_decoder(hidden)
        return logits.reshape(*logits.shape[:-1], 2, -1)


def fourier_features(x: Tensor, weight: Tensor) -> Tensor:
    """Cosines then sines of 2 pi x @ weight: (n, inputs) and (inputs, features) to (n, 2 * features)."""
    angles = 2 * math.pi * x @ weight
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class Moondream2(nn.Module):
    """The three parts, named as in the checkpoint."""

    def __init__(self, config: Moondream2Config) -> None:
        super().__init__()
        self.config = config
        self.vision = Vision(config.vision)
        self.text = Text(config.text)
        self.region = Region(config.region)
