"""Moondream 2 in eager PyTorch: transformers' Phi and SigLIP of the same shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.eager_parts import EagerModel, fill, share_decoder, share_first
from edgevlm_export.modules.moondream2 import Moondream2Config, TextConfig, VisionConfig


class EagerMoondream2(EagerModel):
    """Both towers."""

    def __init__(self, config: Moondream2Config, dtype: torch.dtype, prefix_tokens: int) -> None:
        super().__init__(_text(config.text), dtype, prefix_tokens - config.vision.n_patches)
        self._vision = _vision(config.vision).to(dtype).eval()
        self._projection = _projection(config.vision).to(dtype).eval()

    def see(self, pixels: Tensor) -> Tensor:
        """See `EagerModel.see`."""
        features = self._vision(pixel_values=pixels).last_hidden_state
        tokens: Tensor = self._projection(torch.cat([features, features], -1))
        return tokens


def _text(config: TextConfig) -> Any:
    from transformers import PhiConfig, PhiForCausalLM

    phi = PhiConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.max_context,
        partial_rotary_factor=0.5,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = PhiForCausalLM(phi)
    share_decoder(model.model)
    fill(model)
    return model


def _vision(config: VisionConfig) -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    siglip = SiglipVisionConfig(
        hidden_size=config.enc_dim,
        intermediate_size=config.enc_ff_dim,
        num_hidden_layers=config.enc_n_layers,
        num_attention_heads=config.enc_n_heads,
        image_size=config.crop_size,
        patch_size=config.enc_patch_size,
        vision_use_head=False,
        attn_implementation="sdpa",
    )
    model = SiglipVisionModel(siglip)
    share_first(model.vision_model.encoder.layers)
    return model


def _projection(config: VisionConfig) -> nn.Module:
    return nn.Sequential(
        nn.Linear(2 * config.enc_dim, config.proj_inner_dim),
        nn.GELU(approximate="tanh"),
        nn.Linear(config.proj_inner_dim, config.proj_out_dim),
    )
