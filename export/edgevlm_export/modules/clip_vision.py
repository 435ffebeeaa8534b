"""CLIP's image encoder as others use it: patch features of an inner layer, without the class token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevlm_export.modules.layers import Attend, Attention, LayerNorm, Linear, full_attention, patchify, run_blocks

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
    """Sizes; `n_layers` are those that run, of a tower that may have more."""

    dim: int
    ff_dim: int
    n_layers: int
    n_heads: int
    patch_px: int
    image_px: int
    activation: str = "quick_gelu"

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_px // self.patch_px

    @property
    def n_patches(self) -> int:
        return self.grid**2


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": functional.gelu}


class ClipBlock(nn.Module):
    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.ln1 = LayerNorm(config.dim)
        self.attn = Attention(config.dim, config.n_heads, config.n_heads)
        self.ln2 = LayerNorm(config.dim)
        self.fc1 = Linear(config.dim, config.ff_dim)
        self.fc2 = Linear(config.ff_dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.attn(self.ln1(x), attend)
        y: Tensor = x + self.fc2(self.activation(self.fc1(self.ln2(x))))
        return y


class ClipVision(nn.Module):
    """Crops to patch features."""

    def __init__(self, config: ClipVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_emb = Linear(CHANNELS * config.patch_px**2, config.dim, bias=False)
        self.class_emb = nn.Parameter(torch.empty(config.dim))
        self.pos_emb = nn.Parameter(torch.empty(1 + config.n_patches, config.dim))
        self.pre_ln = LayerNorm(config.dim)
        self.blocks = nn.ModuleList(ClipBlock(config) for _ in range(config.n_layers))

    def encode(self, crops: Tensor) -> Tensor:
        """Normalized crops (crops, 3, side, side) to features (crops, patches, dim)."""
        patches = self.patch_emb(patchify(crops, self.config.patch_px))
        first = self.class_emb.expand(patches.shape[0], 1, -1)
        x = self.pre_ln(torch.cat((first, patches), dim=1) + self.pos_emb)
        return run_blocks(self.blocks, x, full_attention(self.config.n_heads))[:, 1:]
