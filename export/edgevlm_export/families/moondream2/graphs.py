"""Moondream 2's graphs: thin wrappers whose forward is one role, and what goes in and out of each.

A wrapper keeps the parameters' own names and holds only the parts that it runs.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from edgevlm_export.families.decoder_graph import decoder_request, float_spec
from edgevlm_export.families.family import GraphRequest
from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, Region, Text, Vision
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


def graph_requests(config: Moondream2Config) -> tuple[GraphRequest, ...]:
    """All graphs of one checkpoint."""
    # The head decides among the likeliest tokens, and is a small part of the whole.
    decoder = decoder_request(config.text, text_of, eight_bits=frozenset({"text.lm_head.weight"}))
    return (_vision(config), _project(config), decoder, *_regions(config))


def _vision(config: Moondream2Config) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="vision",
        build=lambda module: _VisionGraph(_moondream(module).vision),
        inputs=(float_spec("crops", "crops", vision.in_channels, vision.crop_size, vision.crop_size),),
        outputs=(float_spec("features", "crops", vision.n_patches, vision.enc_dim),),
        example={"crops": 2},
    )


def _project(config: Moondream2Config) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="project",
        build=lambda module: _ProjectGraph(_moondream(module).vision),
        inputs=(float_spec("features", 1, vision.n_patches, 2 * vision.enc_dim),),
        outputs=(float_spec("tokens", 1, vision.n_patches, vision.proj_out_dim),),
        example={},
    )


def _regions(config: Moondream2Config) -> tuple[GraphRequest, ...]:
    region = config.region
    hidden, embeddings = float_spec("hidden", "n", region.dim), float_spec("embeddings", "n", region.dim)
    bins = region.size_out_dim // 2
    parts: tuple[tuple[Role, str, TensorSpec, TensorSpec], ...] = (
        ("region_coordinate_encoder", "encode_coordinate", float_spec("coordinates", "n", 1), embeddings),
        ("region_size_encoder", "encode_size", float_spec("sizes", "n", 2), embeddings),
        ("region_coordinate_decoder", "decode_coordinate", hidden, float_spec("logits", "n", region.coord_out_dim)),
        ("region_size_decoder", "decode_size", hidden, float_spec("logits", "n", 2, bins)),
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


def text_of(module: nn.Module) -> Text:
    """The module's text part."""
    return _moondream(module).text


def _moondream(module: nn.Module) -> Moondream2:
    assert isinstance(module, Moondream2)
    return module
