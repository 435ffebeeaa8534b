"""Nano's configuration, how its weights start, and its parameters for the optimizers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, RegionConfig, TextConfig, VisionConfig
from training.cache import CROP

PATCH = 8
GRID = CROP // PATCH
N_PREFIX = 1 + GRID**2
DIM = 192
VOCAB = 640


def nano_config() -> Moondream2Config:
    """About 4.3 million parameters."""
    return Moondream2Config(
        text=TextConfig(
            dim=DIM,
            ff_dim=576,
            n_layers=4,
            n_heads=6,  # GroupQueryAttention rotates a multiple of 16 dimensions, half of each head's: 32 here
            n_kv_heads=6,
            vocab_size=VOCAB,
            max_context=512,
            prefix_attn=N_PREFIX,
        ),
        vision=VisionConfig(
            enc_dim=DIM,
            enc_ff_dim=576,
            enc_n_layers=6,
            enc_n_heads=4,
            enc_patch_size=PATCH,
            crop_size=CROP,
            proj_inner_dim=384,
            proj_out_dim=DIM,
            max_crops=1,
            overlap_margin=4,
        ),
        region=RegionConfig(
            dim=DIM, coord_feat_dim=64, coord_out_dim=128, size_feat_dim=64, size_out_dim=512, inner_dim=256
        ),
    )


def new_model(seed: int = 0) -> Moondream2:
    """A model with fresh weights."""
    torch.manual_seed(seed)
    model = Moondream2(nano_config())
    for name, parameter in model.named_parameters():
        _start(name, parameter)
    with torch.no_grad():
        model.vision.pos_emb.copy_(sincos_positions(GRID, DIM)[None] * 0.5)
        model.region.coord_features.normal_(std=4.0)
        model.region.size_features.normal_(std=4.0)
    return model


@torch.no_grad()
def _start(name: str, parameter: nn.Parameter) -> None:
    is_norm = ".ln" in name or "post_ln" in name
    if parameter.ndim == 1:
        parameter.fill_(1.0 if is_norm and name.endswith("weight") else 0.0)
    elif name == "text.wte":
        parameter.normal_(std=0.3)
    else:
        deep = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        parameter.normal_(std=(0.5 if deep else 1.0) / math.sqrt(parameter.shape[-1]))


def sincos_positions(grid: int, dim: int) -> Tensor:
    """(grid * grid, dim): sines and cosines of row and column."""
    frequencies = torch.exp(torch.linspace(math.log(math.pi / 2), math.log(math.pi * grid / 2), dim // 4))
    places = (torch.arange(grid) + 0.5) / grid
    angles = places[:, None] * frequencies
    wave = torch.cat((angles.sin(), angles.cos()), dim=1)
    rows, columns = wave[:, None].expand(-1, grid, -1), wave[None].expand(grid, -1, -1)
    return torch.cat((rows, columns), dim=-1).reshape(grid * grid, dim)


def normalized(pixels: Tensor) -> Tensor:
    """uint8 (n, side, side, 3) to float32 (n, 3, side, side) between -1 and 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
