"""TinyGPT-V in eager PyTorch: transformers' BLIP-2 image encoder and Q-Former, and its Phi, of the same shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.eager_parts import EagerModel, fill, share_decoder, share_first
from edgevlm_export.modules.tinygpt_v import QFormerConfig, TextConfig, TinyGptVConfig, VisionConfig


class EagerTinyGptV(EagerModel):
    """The image encoder, the Q-Former with its projection, and the decoder."""

    def __init__(self, config: TinyGptVConfig, dtype: torch.dtype, prefix_tokens: int) -> None:
        super().__init__(_text(config.text), dtype, prefix_tokens - config.qformer.n_queries)
        self._vision = _vision(config.vision).to(dtype).eval()
        self._qformer = _qformer(config.qformer, config.vision.dim).to(dtype).eval()
        self._queries = torch.randn(1, config.qformer.n_queries, config.qformer.dim).to(dtype)
        self._projection = nn.Linear(config.qformer.dim, config.text.dim).to(dtype)

    def see(self, pixels: Tensor) -> Tensor:
        """See `EagerModel.see`."""
        features = self._vision(pixel_values=pixels).last_hidden_state
        seen = self._qformer(query_embeds=self._queries, encoder_hidden_states=features).last_hidden_state
        tokens: Tensor = self._projection(seen)
        return tokens


def _text(config: TextConfig) -> Any:
    from transformers import PhiConfig, PhiForCausalLM

    phi = PhiConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        max_position_embeddings=config.max_context,
        partial_rotary_factor=config.rotary_dim / config.head_dim,
        rope_theta=config.rope_theta,
        qk_layernorm=True,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = PhiForCausalLM(phi)
        for layer in model.model.layers:  # what attention adds is normed
            layer.self_attn.dense = nn.Sequential(layer.self_attn.dense, nn.RMSNorm(config.dim))
    share_decoder(model.model)
    fill(model)
    return model


def _vision(config: VisionConfig) -> Any:
    from transformers import Blip2VisionConfig, Blip2VisionModel

    eva = Blip2VisionConfig(
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        image_size=config.image_px,
        patch_size=config.patch_px,
        hidden_act="gelu",
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        model = Blip2VisionModel(eva)
    share_first(model.encoder.layers)
    fill(model)
    return model


def _qformer(config: QFormerConfig, image_dim: int) -> Any:
    """Every layer has weights of its own: they are small, and one alone would stay in the processor's caches."""
    from transformers import Blip2QFormerConfig, Blip2QFormerModel

    sizes = Blip2QFormerConfig(
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        cross_attention_frequency=config.cross_every,
        encoder_hidden_size=image_dim,
    )
    return Blip2QFormerModel(sizes)
