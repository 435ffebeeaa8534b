"""FastViT as Apple publishes it: tensors by Apple's names, and the formulas on them, without timm.

Sizes of a model: dims and one block for each of four stages, the last of which attends; a conditional position
encoding comes before it. A network's flat list is stage, downsampling, stage, downsampling, stage, downsampling,
position encoding, stage.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]
DIMS = (16, 32, 32, 64)
STAGES, DOWNSAMPLINGS, ENCODING = (0, 2, 4, 7), (1, 3, 5), 6
CLASSES, HEAD_DIM, EPS = 7, 32, 1e-5


class Specimen:
    """A random unfolded checkpoint."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.tensors: Tensors = {}
        dim = DIMS[0]
        self.mobile_one("patch_embed.0", (dim, 3, 3, 3), scale=True, skip=False)
        self.mobile_one("patch_embed.1", (dim, 1, 3, 3), scale=True, skip=False)
        self.mobile_one("patch_embed.2", (dim, dim, 1, 1), scale=False, skip=True)
        for index, (before, after) in zip(DOWNSAMPLINGS, pairwise(DIMS), strict=True):
            self.conv_norm(f"network.{index}.proj.0.lkb_origin", (after, 1, 7, 7))
            self.conv_norm(f"network.{index}.proj.0.small_conv", (after, 1, 3, 3))
            self.mobile_one(f"network.{index}.proj.1", (after, after, 1, 1), scale=False, skip=True)
            assert after % before == 0
        self.layer(f"network.{ENCODING}.pe", (DIMS[3], 1, 7, 7))
        for index, dim in zip(STAGES[:3], DIMS[:3], strict=True):
            self.rep_mixer(f"network.{index}.0", dim)
        self.attention(f"network.{STAGES[3]}.0", DIMS[3])
        self.mobile_one("conv_exp", (2 * DIMS[3], 1, 3, 3), scale=True, skip=False)
        self.layer("conv_exp.se.reduce", (2 * DIMS[3] // 16, 2 * DIMS[3], 1, 1))
        self.layer("conv_exp.se.expand", (2 * DIMS[3], 2 * DIMS[3] // 16, 1, 1))
        self.layer("head", (CLASSES, 2 * DIMS[3]))

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        return torch.randn(shape, generator=self.random) * math.sqrt(1.5 / fan_in)

    def layer(self, name: str, shape: tuple[int, ...], *, bias: bool = True) -> None:
        self.tensors[f"{name}.weight"] = self.normal(shape)
        if bias:
            self.tensors[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=self.random)

    def norm(self, name: str, dim: int) -> None:
        self.tensors[f"{name}.weight"] = 0.5 + torch.rand(dim, generator=self.random)
        self.tensors[f"{name}.bias"] = 0.2 * torch.randn(dim, generator=self.random)
        self.tensors[f"{name}.running_mean"] = 0.2 * torch.randn(dim, generator=self.random)
        self.tensors[f"{name}.running_var"] = 0.5 + torch.rand(dim, generator=self.random)
        self.tensors[f"{name}.num_batches_tracked"] = torch.tensor(5)

    def conv_norm(self, name: str, shape: tuple[int, ...]) -> None:
        self.layer(f"{name}.conv", shape, bias=False)
        self.norm(f"{name}.bn", shape[0])

    def mobile_one(self, name: str, shape: tuple[int, ...], *, scale: bool, skip: bool) -> None:
        self.conv_norm(f"{name}.rbr_conv.0", shape)
        if scale:
            self.conv_norm(f"{name}.rbr_scale", (*shape[:2], 1, 1))
        if skip:
            self.norm(f"{name}.rbr_skip", shape[0])

    def scale(self, name: str, dim: int) -> None:
        self.tensors[name] = 0.5 + 0.5 * torch.rand(dim, 1, 1, generator=self.random)

    def mlp(self, name: str, dim: int) -> None:
        self.conv_norm(f"{name}.conv", (dim, 1, 7, 7))
        self.layer(f"{name}.fc1", (2 * dim, dim, 1, 1))
        self.layer(f"{name}.fc2", (dim, 2 * dim, 1, 1))

    def rep_mixer(self, name: str, dim: int) -> None:
        self.norm(f"{name}.token_mixer.norm.rbr_skip", dim)
        self.mobile_one(f"{name}.token_mixer.mixer", (dim, 1, 3, 3), scale=True, skip=True)
        self.scale(f"{name}.token_mixer.layer_scale", dim)
        self.mlp(f"{name}.convffn", dim)
        self.scale(f"{name}.layer_scale", dim)

    def attention(self, name: str, dim: int) -> None:
        self.norm(f"{name}.norm", dim)
        self.layer(f"{name}.token_mixer.qkv", (3 * dim, dim), bias=False)
        self.layer(f"{name}.token_mixer.proj", (dim, dim))
        self.scale(f"{name}.layer_scale_1", dim)
        self.mlp(f"{name}.convffn", dim)
        self.scale(f"{name}.layer_scale_2", dim)


def forward(t: Tensors, x: Tensor) -> tuple[Tensor, Tensor]:
    """Images (images, 3, side, side) to logits and features."""
    for i, (stride, groups) in enumerate(((2, 1), (2, DIMS[0]), (1, 1))):
        x = F.gelu(_mobile_one(t, f"patch_embed.{i}", x, stride, groups))
    for stage, index in enumerate(STAGES):
        if stage:
            x = _downsample(t, f"network.{DOWNSAMPLINGS[stage - 1]}.proj", x)
        if stage == 3:
            pe = f"network.{ENCODING}.pe"
            x = x + F.conv2d(x, t[f"{pe}.weight"], t[f"{pe}.bias"], padding=3, groups=x.shape[1])
        x = (_attention_block if stage == 3 else _rep_mixer_block)(t, f"network.{index}.0", x)
    x = _mobile_one(t, "conv_exp", x, 1, x.shape[1])
    pooled = x.mean((2, 3), keepdim=True)
    gate = torch.sigmoid(_conv(t, "conv_exp.se.expand", F.relu(_conv(t, "conv_exp.se.reduce", pooled))))
    features = F.gelu(x * gate).mean((2, 3))
    return features @ t["head.weight"].T + t["head.bias"], features


def fold(t: Tensors) -> Tensors:
    """Apple's folded layout: the formulas of structural reparameterization, in double precision."""
    t = {name: value.double() for name, value in t.items()}
    folded = {name: value for name, value in t.items() if name.startswith("head.") or "convffn" in name}
    folded |= {
        name: value for name, value in t.items() if ".se." in name or name.endswith(("layer_scale_1", "layer_scale_2"))
    }
    for i, groups in enumerate((1, DIMS[0], 1)):
        folded |= _named(f"patch_embed.{i}.reparam_conv", _mobile_one_kernel(t, f"patch_embed.{i}", groups))
    for index in DOWNSAMPLINGS:
        large, small = (_kernel(t, f"network.{index}.proj.0.{name}", 7) for name in ("lkb_origin", "small_conv"))
        folded |= _named(f"network.{index}.proj.0.lkb_reparam", (large[0] + small[0], large[1] + small[1]))
        folded |= _named(f"network.{index}.proj.1.reparam_conv", _mobile_one_kernel(t, f"network.{index}.proj.1", 1))
    for index in STAGES[:3]:
        name = f"network.{index}.0"
        folded[f"{name}.layer_scale"] = t[f"{name}.layer_scale"]
        folded |= _named(f"{name}.token_mixer.reparam_conv", _rep_mixer_kernel(t, f"{name}.token_mixer"))
    pe = f"network.{ENCODING}.pe"
    identity = _identity(DIMS[3], DIMS[3], 7)
    folded |= _named(f"network.{ENCODING}.reparam_conv", (identity + t[f"{pe}.weight"], t[f"{pe}.bias"]))
    name = f"network.{STAGES[3]}.0"
    folded |= {key: value for key, value in t.items() if key.startswith((f"{name}.norm.", f"{name}.token_mixer."))}
    folded |= _named("conv_exp.reparam_conv", _mobile_one_kernel(t, "conv_exp", 2 * DIMS[3]))
    return {key: value.float() for key, value in folded.items() if not key.endswith("num_batches_tracked")}


def _conv(t: Tensors, name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, t[f"{name}.weight"], t[f"{name}.bias"])


def _norm(t: Tensors, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (t[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, weight, bias, eps=EPS)


def _conv_norm(t: Tensors, name: str, x: Tensor, stride: int, groups: int) -> Tensor:
    weight = t[f"{name}.conv.weight"]
    return _norm(t, f"{name}.bn", F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups))


def _mobile_one(t: Tensors, name: str, x: Tensor, stride: int, groups: int) -> Tensor:
    total = _conv_norm(t, f"{name}.rbr_conv.0", x, stride, groups)
    if f"{name}.rbr_scale.conv.weight" in t:
        total = total + _conv_norm(t, f"{name}.rbr_scale", x, stride, groups)
    if f"{name}.rbr_skip.weight" in t:
        total = total + _norm(t, f"{name}.rbr_skip", x)
    return total


def _downsample(t: Tensors, name: str, x: Tensor) -> Tensor:
    groups = x.shape[1]
    x = _conv_norm(t, f"{name}.0.lkb_origin", x, 2, groups) + _conv_norm(t, f"{name}.0.small_conv", x, 2, groups)
    return F.gelu(_mobile_one(t, f"{name}.1", x, 1, 1))


def _mlp(t: Tensors, name: str, x: Tensor) -> Tensor:
    x = _conv_norm(t, f"{name}.conv", x, 1, x.shape[1])
    return _conv(t, f"{name}.fc2", F.gelu(_conv(t, f"{name}.fc1", x)))


def _rep_mixer_block(t: Tensors, name: str, x: Tensor) -> Tensor:
    mixer = f"{name}.token_mixer"
    mixed = _mobile_one(t, f"{mixer}.mixer", x, 1, x.shape[1]) - _norm(t, f"{mixer}.norm.rbr_skip", x)
    x = x + t[f"{mixer}.layer_scale"] * mixed
    return x + t[f"{name}.layer_scale"] * _mlp(t, f"{name}.convffn", x)


def _attention_block(t: Tensors, name: str, x: Tensor) -> Tensor:
    images, dim, height, width = x.shape
    tokens = _norm(t, f"{name}.norm", x).flatten(2).transpose(1, 2)
    qkv = (tokens @ t[f"{name}.token_mixer.qkv.weight"].T).reshape(images, height * width, 3, -1, HEAD_DIM)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mixed = ((q @ k.transpose(-2, -1)) * HEAD_DIM**-0.5).softmax(-1) @ v
    mixed = mixed.transpose(1, 2).reshape(images, height * width, dim)
    mixed = mixed @ t[f"{name}.token_mixer.proj.weight"].T + t[f"{name}.token_mixer.proj.bias"]
    x = x + t[f"{name}.layer_scale_1"] * mixed.transpose(1, 2).reshape(x.shape)
    return x + t[f"{name}.layer_scale_2"] * _mlp(t, f"{name}.convffn", x)


def _named(name: str, kernel: tuple[Tensor, Tensor]) -> Tensors:
    return {f"{name}.weight": kernel[0], f"{name}.bias": kernel[1]}


def _identity(dim: int, groups: int, size: int) -> Tensor:
    kernel = torch.zeros(dim, dim // groups, size, size, dtype=torch.float64)
    for channel in range(dim):
        kernel[channel, channel % (dim // groups), size // 2, size // 2] = 1
    return kernel


def _through_norm(t: Tensors, norm: str, kernel: Tensor) -> tuple[Tensor, Tensor]:
    gain = t[f"{norm}.weight"] / (t[f"{norm}.running_var"] + EPS).sqrt()
    return kernel * gain[:, None, None, None], t[f"{norm}.bias"] - t[f"{norm}.running_mean"] * gain


def _kernel(t: Tensors, name: str, size: int) -> tuple[Tensor, Tensor]:
    weight = t[f"{name}.conv.weight"]
    return _through_norm(t, f"{name}.bn", F.pad(weight, [(size - weight.shape[-1]) // 2] * 4))


def _mobile_one_kernel(t: Tensors, name: str, groups: int) -> tuple[Tensor, Tensor]:
    size, dim = t[f"{name}.rbr_conv.0.conv.weight"].shape[-1], t[f"{name}.rbr_conv.0.conv.weight"].shape[0]
    kernels = [_kernel(t, f"{name}.rbr_conv.0", size)]
    if f"{name}.rbr_scale.conv.weight" in t:
        kernels.append(_kernel(t, f"{name}.rbr_scale", size))
    if f"{name}.rbr_skip.weight" in t:
        kernels.append(_through_norm(t, f"{name}.rbr_skip", _identity(dim, groups, size)))
    weights, biases = zip(*kernels, strict=True)
    return torch.stack(weights).sum(0), torch.stack(biases).sum(0)


def _rep_mixer_kernel(t: Tensors, name: str) -> tuple[Tensor, Tensor]:
    gamma = t[f"{name}.layer_scale"]
    dim = len(gamma)
    identity = _identity(dim, dim, 3)
    mixer, norm = _mobile_one_kernel(t, f"{name}.mixer", dim), _through_norm(t, f"{name}.norm.rbr_skip", identity)
    return identity + gamma[:, None] * (mixer[0] - norm[0]), gamma.flatten() * (mixer[1] - norm[1])
