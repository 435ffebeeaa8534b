"""TinyGPT-V's graphs: thin wrappers whose forward is one role, and what goes in and out of each."""

from __future__ import annotations

from torch import Tensor, nn

from edgevlm_export.families.decoder_graph import decoder_request, float_spec
from edgevlm_export.families.family import GraphRequest
from edgevlm_export.modules.tinygpt_v import CHANNELS, QFormer, Text, TinyGptV, TinyGptVConfig, Vision


class _VisionGraph(nn.Module):
    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, crops: Tensor) -> Tensor:
        return self.vision.encode(crops)


class _ProjectGraph(nn.Module):
    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.qformer = qformer

    def forward(self, features: Tensor) -> Tensor:
        y: Tensor = self.qformer(features)
        return y


def graph_requests(config: TinyGptVConfig) -> tuple[GraphRequest, ...]:
    """All graphs of one checkpoint."""
    # The head decides among the likeliest tokens, and is a small part of the whole.
    decoder = decoder_request(config.text, text_of, eight_bits=frozenset({"text.lm_head.weight"}))
    return (_vision(config), _project(config), decoder)


def _vision(config: TinyGptVConfig) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="vision",
        build=lambda module: _VisionGraph(_tinygpt_v(module).vision),
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
        build=lambda module: _ProjectGraph(_tinygpt_v(module).qformer),
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
