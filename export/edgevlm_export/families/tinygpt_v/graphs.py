"""TinyGPT-V's graphs: which part plays each role, and what goes in and out."""

from __future__ import annotations

from torch import nn

from edgevlm_export.families.decoder_graph import decoder_request, float_spec
from edgevlm_export.families.family import GraphRequest
from edgevlm_export.families.part_graph import PartGraph
from edgevlm_export.modules.tinygpt_v import CHANNELS, QFormer, Text, TinyGptV, TinyGptVConfig, Vision


def graph_requests(config: TinyGptVConfig) -> tuple[GraphRequest, ...]:
    """All graphs of one checkpoint."""
    # The head decides among the likeliest tokens, and is a small part of the whole.
    decoder = decoder_request(config.text, text_of, eight_bits=frozenset({"text.lm_head.weight"}))
    return (_vision(config), _project(config), decoder)


def _vision(config: TinyGptVConfig) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="vision",
        build=lambda module: PartGraph("vision", _tinygpt_v(module).vision, Vision.encode),
        inputs=(float_spec("crops", "crops", CHANNELS, vision.image_px, vision.image_px),),
        outputs=(float_spec("features", "crops", vision.n_tokens, vision.dim),),
        example={"crops": 2},
        # Two thirds of an encoder of a billion parameters: in 8 bits they would take 0.33 GB more.
        four_bits=frozenset(
            f"vision.blocks.{i}.mlp.{fc}.weight" for i in range(vision.n_layers) for fc in ("fc1", "fc2")
        ),
    )


def _project(config: TinyGptVConfig) -> GraphRequest:
    return GraphRequest(
        role="project",
        build=lambda module: PartGraph("qformer", _tinygpt_v(module).qformer, QFormer.forward),
        inputs=(float_spec("features", 1, config.vision.n_tokens, config.vision.dim),),
        outputs=(float_spec("tokens", 1, config.qformer.n_queries, config.text.dim),),
        example={},
    )


def text_of(module: nn.Module) -> Text:
    """The module's text part."""
    return _tinygpt_v(module).text


def _tinygpt_v(module: nn.Module) -> TinyGptV:
    assert isinstance(module, TinyGptV)
    return module
