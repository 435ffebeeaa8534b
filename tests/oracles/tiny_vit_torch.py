"""TinyViT as its authors publish it: tensors by their names, and the formulas on them, without timm.

Sizes of a model for images of 64 px: one block a stage; maps of 16, 8, 4 and 2 px, windows of 4, 4 and 2.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
DIMS, HEADS, WINDOWS, CLASSES = (16, 32, 32, 64), (1, 2, 1, 2), (4, 4, 4, 2), 7


class Specimen:
    """A random checkpoint, with the index buffers that old ones carry."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {}
        dim = DIMS[0]
        self.conv_norm("patch_embed.seq.0", (dim // 2, 3, 3, 3))
        self.conv_norm("patch_embed.seq.2", (dim, dim // 2, 3, 3))
        for i, shape in enumerate(((4 * dim, dim, 1, 1), (4 * dim, 1, 3, 3), (dim, 4 * dim, 1, 1)), 1):
            self.conv_norm(f"layers.0.blocks.0.conv{i}", shape)
        for stage, (before, after) in enumerate(pairwise(DIMS)):
            for i, shape in enumerate(((after, before, 1, 1), (after, 1, 3, 3), (after, after, 1, 1)), 1):
                self.conv_norm(f"layers.{stage}.downsample.conv{i}", shape)
            self.block(f"layers.{stage + 1}.blocks.0", after, HEADS[stage + 1], WINDOWS[stage + 1])
        self.norm("norm_head", DIMS[3])
        self.layer("head", CLASSES, DIMS[3])

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random)

    def layer(self, name: str, n_outputs: int, n_inputs: int) -> None:
        self.tensors[f"{name}.weight"] = self.normal(n_outputs, n_inputs) * (1.5 / n_inputs) ** 0.5
        self.tensors[f"{name}.bias"] = 0.2 * self.normal(n_outputs)

    def norm(self, name: str, dim: int) -> None:
        self.tensors[f"{name}.weight"] = 0.5 + torch.rand(dim, generator=self.random)
        self.tensors[f"{name}.bias"] = 0.2 * self.normal(dim)

    def conv_norm(self, name: str, shape: tuple[int, ...]) -> None:
        self.tensors[f"{name}.c.weight"] = self.normal(*shape) * (1.5 / torch.Size(shape[1:]).numel()) ** 0.5
        self.norm(f"{name}.bn", shape[0])
        self.tensors[f"{name}.bn.running_mean"] = 0.2 * self.normal(shape[0])
        self.tensors[f"{name}.bn.running_var"] = 0.5 + torch.rand(shape[0], generator=self.random)
        self.tensors[f"{name}.bn.num_batches_tracked"] = torch.tensor(5)

    def block(self, name: str, dim: int, heads: int, window: int) -> None:
        self.tensors[f"{name}.attn.attention_biases"] = self.normal(heads, window**2)
        self.tensors[f"{name}.attn.attention_bias_idxs"] = torch.zeros(window**2, window**2, dtype=torch.int64)
        self.norm(f"{name}.attn.norm", dim)
        self.layer(f"{name}.attn.qkv", 3 * dim, dim)
        self.layer(f"{name}.attn.proj", dim, dim)
        self.norm(f"{name}.mlp.norm", dim)
        self.layer(f"{name}.mlp.fc1", 4 * dim, dim)
        self.layer(f"{name}.mlp.fc2", dim, 4 * dim)
        self.conv_norm(f"{name}.local_conv", (dim, 1, 3, 3))


def forward(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """Images (images, 3, 64, 64) to logits and features."""
    x = _conv_norm(t, "patch_embed.seq.2", F.gelu(_conv_norm(t, "patch_embed.seq.0", x, 2)), 2)
    y = F.gelu(_conv_norm(t, "layers.0.blocks.0.conv1", x))
    y = F.gelu(_conv_norm(t, "layers.0.blocks.0.conv2", y, groups=y.shape[1]))
    x = F.gelu(x + _conv_norm(t, "layers.0.blocks.0.conv3", y))
    for stage in (1, 2, 3):
        name = f"layers.{stage - 1}.downsample"
        x = F.gelu(_conv_norm(t, f"{name}.conv1", x))
        x = F.gelu(_conv_norm(t, f"{name}.conv2", x, 2, groups=x.shape[1]))
        x = _block(t, f"layers.{stage}.blocks.0", _conv_norm(t, f"{name}.conv3", x), HEADS[stage], WINDOWS[stage])
    features = _layer_norm(t, "norm_head", x.mean((2, 3)))
    return _linear(t, "head", features), features


def _block(t: Tensors, name: str, x: Tensor, heads: int, window: int) -> Tensor:
    """One window after another, as slices of the map."""
    attended = torch.empty_like(x)
    for top in range(0, x.shape[2], window):
        for left in range(0, x.shape[3], window):
            part = x[:, :, top : top + window, left : left + window]
            tokens = _attention(t, f"{name}.attn", part.flatten(2).transpose(1, 2), heads, window)
            attended[:, :, top : top + window, left : left + window] = tokens.transpose(1, 2).reshape(part.shape)
    x = _conv_norm(t, f"{name}.local_conv", x + attended, groups=x.shape[1])
    y = _layer_norm(t, f"{name}.mlp.norm", x.permute(0, 2, 3, 1))
    y = _linear(t, f"{name}.mlp.fc2", F.gelu(_linear(t, f"{name}.mlp.fc1", y)))
    return x + y.permute(0, 3, 1, 2)


def _attention(t: Tensors, name: str, tokens: Tensor, heads: int, window: int) -> Tensor:
    images, n_tokens, dim = tokens.shape
    joined = _linear(t, f"{name}.qkv", _layer_norm(t, f"{name}.norm", tokens))
    q, k, v = joined.reshape(images, n_tokens, heads, -1).transpose(1, 2).chunk(3, dim=-1)
    scores = q @ k.transpose(-2, -1) * (dim // heads) ** -0.5
    for a in range(n_tokens):
        for b in range(n_tokens):
            offset = abs(a // window - b // window) * window + abs(a % window - b % window)
            scores[:, :, a, b] += t[f"{name}.attention_biases"][:, offset]
    return _linear(t, f"{name}.proj", (scores.softmax(-1) @ v).transpose(1, 2).reshape(images, n_tokens, dim))


def _conv_norm(t: Tensors, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    weight = t[f"{name}.c.weight"]
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
    mean, var, gain, bias = (t[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, gain, bias, eps=1e-5)


def _layer_norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps=1e-5)


def _linear(t: Tensors, name: str, x: Tensor) -> Tensor:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]
