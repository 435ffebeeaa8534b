"""Llama: layers of grouped attention and SwiGLU without biases, rotary positions stretched as Llama 3.1 does it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevlm_export.modules.layers import Attend, Attention, Linear, RMSNorm, Rotary, masked_attention


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


class LlamaBlock(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.ln1 = RMSNorm(config.dim, config.norm_eps)
        self.attn = Attention(config.dim, config.n_heads, config.n_kv_heads, bias=False)
        self.ln2 = RMSNorm(config.dim, config.norm_eps)
        self.mlp = SwiGlu(config.dim, config.ff_dim)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.attn(self.ln1(x), attend)
        y: Tensor = x + self.mlp(self.ln2(x))
        return y


class LlamaLayers(nn.Module):
    """Layers over embeddings, without a norm at their end."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layers))
        rescale = {} if config.rope_scaling is None else {"rescale": config.rope_scaling}
        self.rotary = Rotary(config.head_dim, config.max_context, config.rope_theta, **rescale)

    def hidden(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings (batch, tokens, dim) to hidden states of the same shape.

        positions is (tokens,) or (batch, tokens); mask as in `masked_attention`.
        """
        attend = masked_attention(self.rotary, positions, mask, self.config.n_heads, self.config.n_kv_heads)
        for block in self.blocks:
            embeddings = block(embeddings, attend)
        return embeddings


class Llama(LlamaLayers):
    """The decoder over embeddings."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.wte = nn.Parameter(torch.empty(config.vocab_size, config.dim))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.lm_head = Linear(config.dim, config.vocab_size, bias=False)

    def embed(self, token_ids: Tensor) -> Tensor:
        """(batch, tokens) to (batch, tokens, dim)."""
        return functional.embedding(token_ids, self.wte)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., dim) to next-token logits (..., vocab)."""
        y: Tensor = self.lm_head(self.norm(hidden))
        return y


def some_layers(config: LlamaConfig, n_layers: int, max_context: int) -> LlamaConfig:
    """The configuration of layers like a decoder's, for sequences of another length."""
    return replace(config, n_layers=n_layers, max_context=max_context)
