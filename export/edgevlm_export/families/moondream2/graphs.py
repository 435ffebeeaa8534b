"""Moondream 2's graphs: which part plays each role, and what goes in and out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

from edgevlm_export.families.decoder_graph import decoder_request, float_spec
from edgevlm_export.families.family import GraphRequest
from edgevlm_export.families.part_graph import PartGraph
from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, Region, Text, Vision
from edgevlm_runtime.manifest import Role, TensorSpec

_RegionMethod: TypeAlias = Callable[[Region, Tensor], Tensor]


def graph_requests(config: Moondream2Config) -> tuple[GraphRequest, ...]:
    """All graphs of one checkpoint."""
    # The head decides among the likeliest tokens, and is a small part of the whole.
    decoder = decoder_request(config.text, text_of, eight_bits=frozenset({"text.lm_head.weight"}))
    return (_vision(config), _project(config), decoder, *_regions(config))


def _vision(config: Moondream2Config) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="vision",
        build=lambda module: PartGraph("vision", _moondream(module).vision, Vision.encode),
        inputs=(float_spec("crops", "crops", vision.in_channels, vision.crop_size, vision.crop_size),),
        outputs=(float_spec("features", "crops", vision.n_patches, vision.enc_dim),),
        example={"crops": 2},
    )


def _project(config: Moondream2Config) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="project",
        build=lambda module: PartGraph("vision", _moondream(module).vision, Vision.project),
        inputs=(float_spec("features", 1, vision.n_patches, 2 * vision.enc_dim),),
        outputs=(float_spec("tokens", 1, vision.n_patches, vision.proj_out_dim),),
        example={},
    )


def _regions(config: Moondream2Config) -> tuple[GraphRequest, ...]:
    region = config.region
    hidden, embeddings = float_spec("hidden", "n", region.dim), float_spec("embeddings", "n", region.dim)
    logits, bins = float_spec("logits", "n", region.coord_out_dim), region.size_out_dim // 2
    parts: tuple[tuple[Role, _RegionMethod, TensorSpec, TensorSpec], ...] = (
        ("region_coordinate_encoder", Region.encode_coordinate, float_spec("coordinates", "n", 1), embeddings),
        ("region_size_encoder", Region.encode_size, float_spec("sizes", "n", 2), embeddings),
        ("region_coordinate_decoder", Region.decode_coordinate, hidden, logits),
        ("region_size_decoder", Region.decode_size, hidden, float_spec("logits", "n", 2, bins)),
    )
    return tuple(
        GraphRequest(
            role=role,
            build=_region_graph(method),
            inputs=(given,),
            outputs=(wanted,),
            example={"n": 3},
        )
        for role, method, given, wanted in parts
    )


def _region_graph(method: _RegionMethod) -> Callable[[nn.Module], nn.Module]:
    return lambda module: PartGraph("region", _moondream(module).region, method)


def text_of(module: nn.Module) -> Text:
    """The module's text part."""
    return _moondream(module).text


def _moondream(module: nn.Module) -> Moondream2:
    assert isinstance(module, Moondream2)
    return module
