"""Random Moondream 2 modules of odd, small sizes, and what the oracles need to know about them."""

from __future__ import annotations

import torch
from torch import Tensor

from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, RegionConfig, TextConfig, VisionConfig
from tests.oracles.moondream2_numpy import Sizes

# Widths that 128 does not divide, fewer key heads than heads, layers unlike the grid.
GROUPED = Moondream2Config(
    text=TextConfig(
        dim=96, ff_dim=200, n_layers=3, n_heads=3, n_kv_heads=1, vocab_size=151, max_context=96, prefix_attn=26
    ),
    vision=VisionConfig(
        enc_dim=72,
        enc_ff_dim=269,
        enc_n_layers=2,
        enc_n_heads=3,
        enc_patch_size=4,
        crop_size=20,
        proj_inner_dim=130,
        proj_out_dim=96,
        max_crops=6,
        overlap_margin=1,
    ),
    region=RegionConfig(dim=96, coord_feat_dim=32, coord_out_dim=64, size_feat_dim=48, size_out_dim=128, inner_dim=100),
)
# As published in its proportions: as many key heads as heads, a wider head.
PLAIN = Moondream2Config(
    text=TextConfig(
        dim=128, ff_dim=512, n_layers=2, n_heads=2, n_kv_heads=2, vocab_size=200, max_context=96, prefix_attn=50
    ),
    vision=VisionConfig(
        enc_dim=48,
        enc_ff_dim=134,
        enc_n_layers=5,
        enc_n_heads=2,
        enc_patch_size=3,
        crop_size=21,
        proj_inner_dim=64,
        proj_out_dim=128,
        max_crops=4,
        overlap_margin=2,
    ),
    region=RegionConfig(dim=128, coord_feat_dim=64, coord_out_dim=32, size_feat_dim=64, size_out_dim=64, inner_dim=256),
)
CONFIGS = {"grouped": GROUPED, "plain": PLAIN}


def random_tensors(module: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Every parameter of the module, of a size that keeps activations near one; norms near their usual 1 and 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: torch.Size) -> Tensor:
        noise = torch.randn(shape, generator=generator)
        if ".ln" in name or "post_ln" in name:
            return noise * 0.1 + (1.0 if name.endswith("weight") else 0.0)
        if name.endswith("bias"):
            return noise * 0.1
        return noise / shape[-1] ** 0.5 if name.endswith("weight") else noise

    return {name: draw(name, parameter.shape) for name, parameter in module.named_parameters()}


def build(config: Moondream2Config, seed: int = 0) -> tuple[Moondream2, dict[str, Tensor]]:
    """A module with random tensors, and these by their published names."""
    module = Moondream2(config).eval().requires_grad_(False)
    tensors = random_tensors(module, seed)
    module.load_state_dict(tensors, strict=True)
    return module, tensors


def sizes(config: Moondream2Config) -> Sizes:
    return Sizes(
        heads=config.text.n_heads,
        kv_heads=config.text.n_kv_heads,
        vision_heads=config.vision.enc_n_heads,
        patch=config.vision.enc_patch_size,
        crop=config.vision.crop_size,
        margin=config.vision.overlap_margin,
    )
