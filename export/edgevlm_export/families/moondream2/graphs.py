"""Moondream 2's graphs: thin wrappers whose forward is one role, and what goes in and out of each.

A wrapper keeps the parameters' own names and holds only the parts that it runs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from edgevlm_export.families.family import GraphRequest
from edgevlm_export.modules.layers import Attend
from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, Region, Text, TextConfig, Vision
from edgevlm_runtime.manifest import Role, TensorSpec


class _VisionGraph(nn.Module):
    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, crops: Tensor) -> Tensor:
        return self.vision.encode(crops)


class _ProjectGraph(nn.Module):
    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, features: Tensor) -> Tensor:
        return self.vision.project(features)


class _RegionGraph(nn.Module):
    """One of the four directions of the region model, by its method's name."""

    def __init__(self, region: Region, method: str) -> None:
        super().__init__()
        self.region = region
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = getattr(self.region, self.method)(x)
        return y


class _DecoderGraph(nn.Module):
    """The decoder over a cache that is read and extended in place; prefill and step are the same graph."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def forward(
        self,
        embeddings: Tensor,
        attention_bias: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        logit_positions: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        config = self.text.config
        presents: list[Tensor] = []
        x = embeddings
        for block, key, value in zip(self.text.blocks, past[::2], past[1::2], strict=True):
            shared = (attention_bias, seqlens_k, total_sequence_length, self.text.rotary.cos, self.text.rotary.sin)
            x = block(x, _cached_attention(config, (key, value), shared, presents))
        hidden = x[0].index_select(0, logit_positions)
        return self.text.logits(hidden), hidden, *presents


class _WholeDecoder(nn.Module):
    """The decoder over a whole sequence without a cache, in plain torch; see `Recipe.decoder`."""

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.text.hidden(embeddings, positions, mask)[0, rows]
        return self.text.logits(hidden), hidden


def whole_decoder(module: nn.Module) -> nn.Module:
    """The module's text part as `Recipe.decoder` wants it."""
    return _WholeDecoder(_moondream(module).text)


def _cached_attention(
    config: TextConfig, past: tuple[Tensor, Tensor], shared: tuple[Tensor, ...], presents: list[Tensor]
) -> Attend:
    """One layer's attention as GroupQueryAttention; its new keys and values are appended to presents."""
    bias, seqlens_k, total, cos, sin = shared

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (q, k, v, *past, seqlens_k, total, cos, sin, None, bias),
            attrs={
                "num_heads": config.n_heads,
                "kv_num_heads": config.n_kv_heads,
                "do_rotary": 1,
                "rotary_interleaved": 0,
                "causal": 0,
            },
            dtypes=(q.dtype, k.dtype, v.dtype),
            shapes=(q.shape, past[0].shape, past[1].shape),
            version=1,
        )
        presents.extend(present)
        result: Tensor = attended
        return result

    return attend


def graph_requests(config: Moondream2Config) -> tuple[GraphRequest, ...]:
    """All graphs of one checkpoint."""
    return (_vision(config), _project(config), _decoder(config), *_regions(config))


def _float(name: str, *shape: int | str) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape)


def _vision(config: Moondream2Config) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="vision",
        build=lambda module: _VisionGraph(_moondream(module).vision),
        inputs=(_float("crops", "crops", vision.in_channels, vision.crop_size, vision.crop_size),),
        outputs=(_float("features", "crops", vision.n_patches, vision.enc_dim),),
        example={"crops": 2},
    )


def _project(config: Moondream2Config) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="project",
        build=lambda module: _ProjectGraph(_moondream(module).vision),
        inputs=(_float("features", 1, vision.n_patches, 2 * vision.enc_dim),),
        outputs=(_float("tokens", 1, vision.n_patches, vision.proj_out_dim),),
        example={},
    )


def _decoder(config: Moondream2Config) -> GraphRequest:
    text = config.text
    cache = (1, text.n_kv_heads, text.max_context, text.dim // text.n_heads)
    layers = [(i, part) for i in range(text.n_layers) for part in ("key", "value")]
    return GraphRequest(
        role="decoder",
        build=lambda module: _DecoderGraph(_moondream(module).text),
        inputs=(
            _float("embeddings", 1, "tokens", text.dim),
            _float("attention_bias", 1, 1, "tokens", "total"),
            TensorSpec(name="seqlens_k", dtype="int32", shape=(1,)),
            TensorSpec(name="total_sequence_length", dtype="int32", shape=()),
            TensorSpec(name="logit_positions", dtype="int64", shape=("n",)),
            *(_float(f"past_key_values.{i}.{part}", *cache) for i, part in layers),
        ),
        outputs=(
            _float("logits", "n", text.vocab_size),
            _float("hidden", "n", text.dim),
            *(_float(f"present.{i}.{part}", *cache) for i, part in layers),
        ),
        example={"tokens": 3, "total": 5, "n": 2},
        eight_bits=frozenset({"text.lm_head.weight"}),  # decides among the likeliest tokens; a small part of the whole
    )


def _regions(config: Moondream2Config) -> tuple[GraphRequest, ...]:
    region = config.region
    hidden, embeddings = _float("hidden", "n", region.dim), _float("embeddings", "n", region.dim)
    bins = region.size_out_dim // 2
    parts: tuple[tuple[Role, str, TensorSpec, TensorSpec], ...] = (
        ("region_coordinate_encoder", "encode_coordinate", _float("coordinates", "n", 1), embeddings),
        ("region_size_encoder", "encode_size", _float("sizes", "n", 2), embeddings),
        ("region_coordinate_decoder", "decode_coordinate", hidden, _float("logits", "n", region.coord_out_dim)),
        ("region_size_decoder", "decode_size", hidden, _float("logits", "n", 2, bins)),
    )
    return tuple(
        GraphRequest(
            role=role,
            build=partial(_region_graph, method=method),
            inputs=(given,),
            outputs=(wanted,),
            example={"n": 3},
        )
        for role, method, given, wanted in parts
    )


def _region_graph(module: nn.Module, *, method: str) -> nn.Module:
    return _RegionGraph(_moondream(module).region, method)


def _moondream(module: nn.Module) -> Moondream2:
    assert isinstance(module, Moondream2)
    return module
