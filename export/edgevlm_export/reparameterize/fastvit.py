"""FastViT and MobileCLIP's image towers: what timm's own folding leaves behind.

BatchNorm(x) = t * x + (beta - mean * t) per channel, t = gamma / sqrt(var + eps), is folded into the convolution
before it, or into the Linear after it; a layer scale into the layer before it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgevlm_export.reparameterize.attention import FoldedAttention, linear, scaled_queries


@torch.no_grad()
def fold_blocks(model: nn.Module) -> None:
    """Fold, in place, all blocks of a FastViT; other models have none."""
    from timm.models.fastvit import AttentionBlock, FastVit, RepMixerBlock

    if not isinstance(model, FastVit):
        return
    for block in list(model.modules()):
        if isinstance(block, RepMixerBlock):
            _fold_mlp(block, "layer_scale")
        elif isinstance(block, AttentionBlock):
            _fold_mlp(block, "layer_scale_2")
            _fold_attention(block)


class _TokenMixer(nn.Module):
    """Attention over the pixels of a map (images, dim, height, width)."""

    def __init__(self, attention: FoldedAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.attention(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(x.shape)


def _fold_mlp(block: Any, scale: str) -> None:
    mlp = block.mlp
    if not isinstance(mlp.conv, nn.Conv2d):
        mlp.conv = fold_batch_norm(mlp.conv.conv, mlp.conv.bn)
    _fold_scale(block, scale, mlp.fc2)


def _fold_scale(block: Any, name: str, layer: Any) -> None:
    """Fold a layer scale into the layer before it; a model may be built without."""
    scale = getattr(block, name)
    if isinstance(scale, nn.Identity):
        return
    gamma = scale.gamma.flatten()
    layer.weight.mul_(gamma.reshape(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.mul_(gamma)
    setattr(block, name, nn.Identity())


def _fold_attention(block: Any) -> None:
    mixer, norm = block.token_mixer, block.norm
    _fold_scale(block, "layer_scale_1", mixer.proj)
    qkv = linear(mixer.qkv.weight, torch.zeros(mixer.qkv.out_features) if mixer.qkv.bias is None else mixer.qkv.bias)
    inner: nn.Module = nn.Identity()
    if isinstance(norm, nn.BatchNorm2d):
        gain, offset = _affine(norm)
        qkv = linear(qkv.weight * gain, qkv.bias + qkv.weight @ offset)
    else:
        # A norm over channels sees each pixel alone, so that it may as well come once pixels are tokens.
        inner = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)
        inner.load_state_dict(norm.state_dict())
    qkv = scaled_queries(qkv, torch.arange(qkv.out_features), mixer.scale)
    block.norm = nn.Identity()
    block.token_mixer = _TokenMixer(FoldedAttention(inner, qkv, mixer.proj, mixer.num_heads))


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution that computes norm(conv(x)); both are left alone."""
    gain, offset = _affine(norm)
    with torch.device("meta"):
        folded = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # torch types it as a tuple of any length
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
        )
    folded.weight = nn.Parameter(conv.weight * gain.reshape(-1, 1, 1, 1))
    folded.bias = nn.Parameter(offset if conv.bias is None else offset + conv.bias * gain)
    return folded


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Gain and offset, each (channels,), of a batch norm with its stored statistics."""
    assert norm.running_mean is not None and norm.running_var is not None
    gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return gain, norm.bias - norm.running_mean * gain
