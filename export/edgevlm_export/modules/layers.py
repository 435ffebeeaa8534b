"""Layers that every family is built from: plain PyTorch to compute, one ONNX node each when traced.

A traced `Linear` becomes the single node `edgevlm::Linear` on the checkpoint's own (out, in) weight, so that the
precision of a matrix is decided later, by a pass over the graph, without looking for patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

DOMAIN = "edgevlm"  # of nodes that a pass replaces by those of engines

Attend: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values, each (batch, tokens, heads * head_dim), to the attended values of the queries' shape."""


class Linear(nn.Module):
    """`x @ weight.T + bias` for weight (out, in) and bias (out,), which may be left out."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return functional.linear(x, self.weight, self.bias)
        traced: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::Linear",
            (x, self.weight, self.bias),
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.weight.shape[0]),
            version=1,
        )
        return traced


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, by default with PyTorch's epsilon."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps)


class RMSNorm(nn.Module):
    """The last axis over its root mean square, times a weight (dim,)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Divided, not multiplied by the reciprocal: so engines know it for one operator.
        return x / torch.sqrt(x.square().mean(dim=-1, keepdim=True) + self.eps) * self.weight


class Mlp(nn.Module):
    """Two layers with GELU between them: its tanh approximation, or `exact`."""

    def __init__(self, dim: int, inner_dim: int, out_dim: int | None = None, *, exact: bool = False) -> None:
        super().__init__()
        self.fc1 = Linear(dim, inner_dim)
        self.fc2 = Linear(inner_dim, dim if out_dim is None else out_dim)
        self.approximate = "none" if exact else "tanh"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(functional.gelu(self.fc1(x), approximate=self.approximate))
        return y


class Attention(nn.Module):
    """Fused query, key and value projection, attention, output projection."""

    def __init__(self, dim: int, n_heads: int, n_kv_heads: int, *, bias: bool = True) -> None:
        super().__init__()
        head_dim = dim // n_heads
        self.widths = (n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim)
        self.qkv = Linear(dim, sum(self.widths), bias=bias)
        self.proj = Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        y: Tensor = self.proj(attend(*self.qkv(x).split(self.widths, dim=-1)))
        return y


class PreNormBlock(nn.Module):
    """Attention, then an MLP: each reads a norm of what comes in, and is added to it."""

    def __init__(self, norm: Callable[[], nn.Module], attn: Attention, mlp: nn.Module) -> None:
        super().__init__()
        self.ln1 = norm()
        self.attn = attn
        self.ln2 = norm()
        self.mlp = mlp

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        x = x + self.attn(self.ln1(x), attend)
        y: Tensor = x + self.mlp(self.ln2(x))
        return y


def run_blocks(blocks: Iterable[nn.Module], x: Tensor, attend: Attend) -> Tensor:
    """x (batch, tokens, dim) through one block after another, all with the same attention."""
    for block in blocks:
        x = block(x, attend)
    return x


def patchify(images: Tensor, patch_px: int) -> Tensor:
    """(images, channels, side, side) to (images, patches, channels * patch * patch), channel first within a patch."""
    channels, grid = images.shape[1], images.shape[2] // patch_px
    x = images.reshape(-1, channels, grid, patch_px, grid, patch_px)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, grid * grid, channels * patch_px * patch_px)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """(batch, tokens, heads * head_dim) to (batch, heads, tokens, head_dim)."""
    return x.reshape(*x.shape[:-1], n_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(batch, heads, tokens, head_dim) to (batch, tokens, heads * head_dim)."""
    return x.transpose(1, 2).flatten(2)


def full_attention(n_heads: int) -> Attend:
    """Every token attends to every token; traced as one MultiHeadAttention."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            traced: Tensor = torch.onnx.ops.symbolic(
                "com.microsoft::MultiHeadAttention",
                (q, k, v),
                attrs={"num_heads": n_heads},
                dtype=q.dtype,
                shape=q.shape,
                version=1,
            )
            return traced
        query, key, value = (split_heads(x, n_heads) for x in (q, k, v))
        return merge_heads(functional.scaled_dot_product_attention(query, key, value))

    return attend


class Rotary:
    """Rotary position embedding of the first `rotary_dim` dimensions of each head, in halves (NeoX order).

    The reference writes the rotated halves back interleaved; that permutes queries and keys alike and leaves their
    products as they are. `rescale` changes the frequencies (rotary_dim / 2,).
    """

    def __init__(
        self,
        rotary_dim: int,
        max_context: int,
        theta: float = 10000.0,
        rescale: Callable[[Tensor], Tensor] = lambda frequencies: frequencies,
    ) -> None:
        exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu") / rotary_dim
        positions = torch.arange(max_context, dtype=torch.float32, device="cpu")
        angles = torch.outer(positions, rescale(theta**-exponents))
        self.cos, self.sin = angles.cos(), angles.sin()  # each (max_context, rotary_dim / 2)

    def __call__(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x (batch, heads, tokens, head_dim) at positions (tokens,) or (batch, tokens)."""
        cos, sin = (t.to(x.device)[positions].to(x.dtype) for t in (self.cos, self.sin))
        if positions.ndim == 2:
            cos, sin = cos[:, None], sin[:, None]  # (batch, 1, tokens, rotary_dim / 2)
        half = cos.shape[-1]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), dim=-1)


def masked_attention(rotary: Rotary, positions: Tensor, mask: Tensor | None, n_heads: int, n_kv_heads: int) -> Attend:
    """Rotated attention of a whole sequence.

    mask is boolean, True where a query may look, broadcast over (batch, heads, queries, keys); None is causal.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        query = rotary(split_heads(q, n_heads), positions)
        key = rotary(split_heads(k, n_kv_heads), positions)
        value = split_heads(v, n_kv_heads)
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=n_heads != n_kv_heads
        )
        return merge_heads(attended)

    return attend
