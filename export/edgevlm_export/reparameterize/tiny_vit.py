"""TinyViT: attention biases, which the published module gathers from a table of offsets, as constants.

Blocks are rewritten to move tokens about less, and never in more than four dimensions, which NPUs want. timm folds the
batch norms (`ConvNorm.fuse`). The table is (heads, offsets); tokens whose rows differ by dy and whose columns differ
by dx share the bias of the offset (|dy|, |dx|).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm_export.reparameterize.attention import FoldedAttention, scaled_queries

MAX_CONSTANT_BYTES = 16 << 20  # a block's biases (heads, tokens, tokens); larger ones stay a gather


@torch.no_grad()
def fold_blocks(model: nn.Module) -> None:
    """Fold, in place, all blocks of a TinyViT; other models have none."""
    from timm.models.tiny_vit import TinyVit, TinyVitBlock

    if not isinstance(model, TinyVit):
        return
    indexes: dict[int, Tensor] = {}  # by tokens: blocks of one stage share them
    for name, block in list(model.named_modules()):
        if isinstance(block, TinyVitBlock):
            attention: Any = block.attn
            index = indexes.setdefault(len(attention.attention_bias_idxs), attention.attention_bias_idxs.int())
            model.set_submodule(name, _Block(block, _fold(attention, index)))


def kept_gathers(model: nn.Module) -> int:
    """How many blocks of a TinyViT that is not yet folded have biases too large for a constant."""
    from timm.models.tiny_vit import Attention

    return sum(isinstance(part, Attention) and _bias_bytes(part) > MAX_CONSTANT_BYTES for part in model.modules())


class _Block(nn.Module):
    """Attention in windows, a convolution, an MLP."""

    def __init__(self, published: Any, attention: FoldedAttention) -> None:
        super().__init__()
        self.window: int = published.window_size
        self.attention, self.conv, self.mlp = attention, published.local_conv, published.mlp

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (images, height, width, dim) to the same shape."""
        x = x + self._attend(x)
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        mixed: Tensor = x + self.mlp(x)
        return mixed

    def _attend(self, x: Tensor) -> Tensor:
        height, width, side = x.shape[1], x.shape[2], self.window
        if height == width == side:
            whole: Tensor = self.attention(x)
            return whole
        down, right = -height % side, -width % side
        if not (down or right):
            return self._attend_windows(x)
        # Padding is not masked: the published module lets tokens look at it too.
        return self._attend_windows(nn.functional.pad(x, (0, 0, 0, right, 0, down)))[:, :height, :width]

    def _attend_windows(self, x: Tensor) -> Tensor:
        height, width, dim = x.shape[1:]
        side, cols = self.window, width // self.window
        windows = x.reshape(-1, side, cols, side * dim).transpose(1, 2).reshape(-1, side, side, dim)
        lines: Tensor = self.attention(windows).reshape(-1, cols, side, side * dim).transpose(1, 2)
        return lines.reshape(-1, height, width, dim)


class _Biased(FoldedAttention):
    """With the bias (heads, tokens, tokens) as a constant."""

    bias: Tensor

    def add_bias(self, scores: Tensor) -> Tensor:
        return scores + self.bias


class _Gathered(FoldedAttention):
    """With the bias gathered from `table` (heads, offsets) by `index` int32 (tokens, tokens)."""

    table: Tensor
    index: Tensor

    def add_bias(self, scores: Tensor) -> Tensor:
        flat = torch.index_select(self.table, 1, self.index.flatten())
        return scores + flat.reshape(scores.shape[1:])


def _fold(attention: Any, index: Tensor) -> FoldedAttention:
    heads = attention.num_heads
    qkv = scaled_queries(attention.qkv, _by_kind(attention.qkv.out_features, heads), attention.scale)
    parts = attention.norm, qkv, attention.proj, heads
    if _bias_bytes(attention) > MAX_CONSTANT_BYTES:
        folded: FoldedAttention = _Gathered(*parts)
        folded.register_buffer("table", attention.attention_biases.detach())
        folded.register_buffer("index", index)
    else:
        folded = _Biased(*parts)
        folded.register_buffer("bias", attention.attention_biases.detach()[:, index])
    return folded


def _by_kind(rows: int, heads: int) -> Tensor:
    """Rows that lie head by head as query, key, value, in the order of all queries, all keys, all values."""
    return torch.arange(rows).reshape(heads, 3, -1).transpose(0, 1).flatten()


def _bias_bytes(attention: Any) -> int:
    return int(4 * attention.num_heads * attention.attention_bias_idxs.numel())
