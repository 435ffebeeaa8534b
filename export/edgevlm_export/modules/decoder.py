"""Decoders: layers with rotary positions, between a table of embeddings and a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevlm_export.modules.layers import Attend, LayerNorm, Linear, Mlp, Rotary, masked_attention, run_blocks


class LayerSizes(Protocol):
    """What layers over a cache are like; a head is dim // n_heads wide."""

    @property
    def dim(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def max_context(self) -> int: ...


class TextSizes(LayerSizes, Protocol):
    """What a decoder is like."""

    @property
    def ff_dim(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


class Layers(nn.Module):
    """Layers over embeddings, without a norm at their end."""

    def __init__(self, config: LayerSizes, block: Callable[[], nn.Module], rotary: Rotary) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(block() for _ in range(config.n_layers))
        self.rotary = rotary

    def hidden(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings (batch, tokens, dim) to hidden states of the same shape, before the last norm.

        positions is (tokens,) or (batch, tokens); mask as in `masked_attention`.
        """
        attend = masked_attention(self.rotary, positions, mask, self.config.n_heads, self.config.n_kv_heads)
        return run_blocks(self.blocks, embeddings, attend)


class Decoder(Layers, ABC):
    """The decoder over embeddings. A subclass has the head, and the norm before it under the checkpoint's name."""

    lm_head: Linear

    def __init__(self, config: TextSizes, block: Callable[[], nn.Module], rotary: Rotary) -> None:
        super().__init__(config, block, rotary)
        self.wte = nn.Parameter(torch.empty(config.vocab_size, config.dim))

    @abstractmethod
    def last_norm(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., dim) as the head reads them."""

    def embed(self, token_ids: Tensor) -> Tensor:
        """(batch, tokens) to (batch, tokens, dim)."""
        return functional.embedding(token_ids, self.wte)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., dim) to next-token logits (..., vocab)."""
        y: Tensor = self.lm_head(self.last_norm(hidden))
        return y


class ParallelBlock(nn.Module):
    """Attention and an MLP that read the same norm of what comes in, and are both added to it."""

    def __init__(self, config: TextSizes, attn: nn.Module) -> None:
        super().__init__()
        self.ln = LayerNorm(config.dim)
        self.attn = attn
        self.mlp = Mlp(config.dim, config.ff_dim)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        h = self.ln(x)
        y: Tensor = x + self.attn(h, attend) + self.mlp(h)
        return y


class ParallelDecoder(Decoder):
    """A decoder of parallel blocks, as Phi is; `attention` makes that of one block."""

    def __init__(self, config: TextSizes, attention: Callable[[], nn.Module], rotary: Rotary) -> None:
        super().__init__(config, lambda: ParallelBlock(config, attention()), rotary)
        self.post_ln = LayerNorm(config.dim)
        self.lm_head = Linear(config.dim, config.vocab_size)

    def last_norm(self, hidden: Tensor) -> Tensor:
        """See `Decoder.last_norm`."""
        y: Tensor = self.post_ln(hidden)
        return y
