"""Llama: layers of grouped attention and SwiGLU without biases, rotary positions stretched as Llama 3.1 does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from edgevlm_export.modules.decoder import Decoder, Layers
from edgevlm_export.modules.layers import Attention, Linear, PreNormBlock, RMSNorm, Rotary


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How Llama 3.1 slows low frequencies down. Field names are those of config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __call__(self, frequencies: Tensor) -> Tensor:
        """Frequencies (n,): those of short waves as they are, those of long ones over `factor`, a blend between."""
        waves = self.original_max_position_embeddings * frequencies / (2 * math.pi)  # in the original context
        share = (waves - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        share = share.clamp(0, 1)
        return (1 - share) * frequencies / self.factor + share * frequencies


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of a decoder, or of some layers like its own."""

    dim: int
    ff_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_context: int
    rope_theta: float
    rope_scaling: RopeScaling | None
    norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class SwiGlu(nn.Module):
    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.gate_up = Linear(dim, 2 * inner_dim, bias=False)
        self.down = Linear(inner_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = self.down(functional.silu(gate) * up)
        return y


class LlamaBlock(PreNormBlock):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(
            partial(RMSNorm, config.dim, config.norm_eps),
            Attention(config.dim, config.n_heads, config.n_kv_heads, bias=False),
            SwiGlu(config.dim, config.ff_dim),
        )


class LlamaLayers(Layers):
    """Layers over embeddings, without a norm at their end."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config, partial(LlamaBlock, config), _rotary(config))


class Llama(Decoder):
    """The decoder over embeddings."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config, partial(LlamaBlock, config), _rotary(config))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = Linear(config.dim, config.vocab_size, bias=False)

    def last_norm(self, hidden: Tensor) -> Tensor:
        """See `Decoder.last_norm`."""
        y: Tensor = self.norm(hidden)
        return y


def _rotary(config: LlamaConfig) -> Rotary:
    rescale = {} if config.rope_scaling is None else {"rescale": config.rope_scaling}
    return Rotary(config.head_dim, config.max_context, config.rope_theta, **rescale)


def some_layers(config: LlamaConfig, n_layers: int, max_context: int) -> LlamaConfig:
    """The configuration of layers like a decoder's, for sequences of another length."""
    return replace(config, n_layers=n_layers, max_context=max_context)
