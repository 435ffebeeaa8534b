"""Attention over tokens in the form that gives the smallest graph: one product to queries, keys and values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FoldedAttention(nn.Module):
    """Self-attention whose scale is part of the queries' weights.

    Rows of `qkv` are those of all queries, then of all keys, then of all values, head by head.
    """

    def __init__(self, norm: nn.Module, qkv: nn.Linear, proj: nn.Linear, heads: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.proj, self.heads = norm, qkv, proj, heads

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (images, tokens, dim) or (images, height, width, dim) to the same shape."""
        tokens, dim = math.prod(x.shape[1:-1]), x.shape[-1]
        joined = self.qkv(self.norm(x)).reshape(-1, tokens, 3 * self.heads, dim // self.heads).transpose(1, 2)
        q, k, v = joined.split(self.heads, dim=1)
        scores = self.add_bias(q @ k.transpose(-2, -1))
        mixed: Tensor = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, *x.shape[1:]))
        return mixed

    def add_bias(self, scores: Tensor) -> Tensor:
        """Scores (images, heads, tokens, tokens) plus whatever depends on where tokens lie: here nothing."""
        return scores


@torch.no_grad()
def scaled_queries(qkv: nn.Linear, order: Tensor, scale: float) -> nn.Linear:
    """A copy of a Linear with its rows in that order, the first third of which, the queries', is scaled."""
    weight, bias = qkv.weight[order], qkv.bias[order]
    n_queries = len(order) // 3
    weight[:n_queries] *= scale
    bias[:n_queries] *= scale
    return linear(weight, bias)


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A Linear of the weight (out, in) and the bias (out,)."""
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return made
