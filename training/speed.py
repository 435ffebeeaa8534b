"""What makes training quick: bfloat16 products, and on CPUs attention written out.

PyTorch's fused attention spends most of a training step in its backward pass on CPUs; for a few hundred tokens the
plain products are several times faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

CPU = torch.device("cpu")


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention of (batch, heads, tokens, head_dim) with a boolean mask, for training."""
    if is_causal or enable_gqa:
        raise NotImplementedError("training passes every mask explicitly and has as many key heads as query heads")
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -1e4)
    return torch.softmax(scores, dim=-1) @ value


@contextmanager
def fast_training(device: torch.device = CPU) -> Iterator[None]:
    """Inside, modules compute on the device, where new tensors appear too, in mixed precision with plain attention."""
    fused = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    try:
        with device, torch.autocast(device.type, torch.bfloat16):
            yield
    finally:
        functional.scaled_dot_product_attention = fused
