"""LLaVA-Mini in eager PyTorch: transformers' CLIP and Llama of the same shapes, the compressor in plain torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.peers.eager_parts import EagerModel, fill, share_decoder, share_first
from edgevlm_export.modules.clip_vision import ClipVisionConfig
from edgevlm_export.modules.llama import LlamaConfig
from edgevlm_export.modules.llava_mini import LlavaMiniConfig, n_compressor_heads


class EagerLlavaMini(EagerModel):
    """The vision tower, the compressor, the layers before the decoder with a cache of their own, and the decoder."""

    def __init__(self, config: LlavaMiniConfig, dtype: torch.dtype, prefix_tokens: int) -> None:
        from transformers import DynamicCache

        super().__init__(_text(config.text), dtype, prefix_tokens - config.n_compressed)
        self._n_compressed = config.n_compressed
        self._vision = _vision(config.vision).to(dtype).eval()
        self._compressor = Compressor(config.vision.dim, config.n_compressed).to(dtype).eval()
        self._projector = _projector(config.vision.dim, config.text.dim).to(dtype).eval()
        self._mixer = _mixer(config.prefusion).to(dtype).eval()
        self._mixed: Any = DynamicCache()
        self._n_mixed = 0

    def see(self, pixels: Tensor) -> Tensor:
        """See `EagerModel.see`; the tokens are those of all patches, then the compressed ones."""
        features = self._vision(pixel_values=pixels).last_hidden_state[:, 1:]
        tokens: Tensor = self._projector(torch.cat([features, self._compressor(features)], 1))
        return tokens

    def read_image(self, tokens: Tensor) -> None:
        """See `EagerModel.read_image`."""
        words = self._n_before
        mixed = self._mix(torch.cat([tokens, self._words_before()], 1))
        self._n_mixed = mixed.shape[1]
        compressed = mixed[:, -words - self._n_compressed : -words]
        self._step(inputs_embeds=torch.cat([mixed[:, -words:], compressed], 1))

    def ask(self, ids: Tensor) -> Tensor:
        """See `EagerModel.ask`; the words are mixed with the image first."""
        return self._step(inputs_embeds=self._mix(self._embed(ids)))

    def forget(self, n_kept: int) -> None:
        """See `EagerModel.forget`; the image is forgotten only with all."""
        super().forget(n_kept)
        self._mixed.crop(self._n_mixed if n_kept else 0)

    def _mix(self, embeddings: Tensor) -> Tensor:
        states: Tensor = self._mixer(
            inputs_embeds=embeddings, past_key_values=self._mixed, use_cache=True
        ).last_hidden_state
        return states


class Compressor(nn.Module):
    """Queries, projected once, that attend to all patches."""

    def __init__(self, dim: int, n_queries: int) -> None:
        super().__init__()
        self.n_heads = n_compressor_heads(dim)
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(1, n_queries, dim))
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Features (1, patches, dim) to (1, queries, dim)."""
        normed = self.norm(features)
        queries, keys, values = (self._heads(x) for x in (self.queries, self.key(normed), self.value(normed)))
        seen = functional.scaled_dot_product_attention(queries, keys, values)
        y: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return y

    def _heads(self, x: Tensor) -> Tensor:
        y: Tensor = x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        return y


def _text(config: LlamaConfig) -> Any:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(_llama(config))
    share_decoder(model.model)
    fill(model)
    return model


def _mixer(config: LlamaConfig) -> Any:
    """The layers before the decoder, which have no norm at their end and read embeddings only."""
    from transformers import LlamaModel

    with torch.device("meta"):
        model: Any = LlamaModel(_llama(config))
    model.norm = nn.Identity()
    model.embed_tokens = None
    share_decoder(model)
    return model


def _llama(config: LlamaConfig) -> Any:
    from transformers import LlamaConfig as Config

    scaling = config.rope_scaling
    return Config(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=131_072,  # as published; transformers complains of fewer than the scaling speaks of
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        rope_scaling=None if scaling is None else {"rope_type": "llama3", **asdict(scaling)},
        attn_implementation="sdpa",
    )


def _vision(config: ClipVisionConfig) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    clip = CLIPVisionConfig(
        hidden_size=config.dim,
        intermediate_size=config.ff_dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        image_size=config.image_px,
        patch_size=config.patch_px,
        hidden_act=config.activation,
        attn_implementation="sdpa",
    )
    model = CLIPVisionModel(clip)
    share_first(model.vision_model.encoder.layers)
    return model


def _projector(dim: int, out_dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))
