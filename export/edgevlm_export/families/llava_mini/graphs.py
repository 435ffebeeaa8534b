"""LLaVA-Mini's graphs: vision, project (with compression), prefuse and decoder."""

from __future__ import annotations

from torch import Tensor, nn

from edgevlm_export.families.decoder_graph import cache_specs, cached_layers, decoder_request, float_spec, layers_inputs
from edgevlm_export.families.family import GraphRequest
from edgevlm_export.families.part_graph import PartGraph
from edgevlm_export.modules.clip_vision import CHANNELS, ClipVision
from edgevlm_export.modules.llama import Llama, LlamaLayers
from edgevlm_export.modules.llava_mini import LlavaMini, LlavaMiniConfig, project


class _ProjectGraph(nn.Module):
    def __init__(self, module: LlavaMini) -> None:
        super().__init__()
        self.config = module.config
        self.compressor = module.compressor
        self.projector = module.projector

    def forward(self, features: Tensor) -> Tensor:
        return project(self.config, self.compressor, self.projector, features)


class _PrefuseGraph(nn.Module):
    """Layers over a cache that is read and extended in place."""

    def __init__(self, prefusion: LlamaLayers) -> None:
        super().__init__()
        self.prefusion = prefusion

    def forward(
        self,
        embeddings: Tensor,
        attention_bias: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        lengths = (seqlens_k, total_sequence_length)
        fused, presents = cached_layers(self.prefusion, embeddings, attention_bias, lengths, past)
        return fused, *presents


class _WholeFuser(nn.Module):
    """The same layers over a whole sequence, in plain torch; see `Recipe.fuser`."""

    def __init__(self, prefusion: LlamaLayers) -> None:
        super().__init__()
        self.prefusion = prefusion

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        return self.prefusion.hidden(embeddings, positions, mask)


def graph_requests(config: LlavaMiniConfig) -> tuple[GraphRequest, ...]:
    """All graphs of one checkpoint."""
    # The head decides among the likeliest tokens, and is a small part of the whole.
    decoder = decoder_request(config.text, text_of, eight_bits=frozenset({"text.lm_head.weight"}))
    return (_vision(config), _project(config), _prefuse(config), decoder)


def text_of(module: nn.Module) -> Llama:
    """The module's text part."""
    return _llava(module).text


def whole_fuser(module: nn.Module) -> nn.Module:
    """The module's layers before the decoder as `Recipe.fuser` wants them."""
    return _WholeFuser(_llava(module).prefusion)


def _vision(config: LlavaMiniConfig) -> GraphRequest:
    vision = config.vision
    return GraphRequest(
        role="vision",
        build=lambda module: PartGraph("vision", _llava(module).vision, ClipVision.encode),
        inputs=(float_spec("crops", "crops", CHANNELS, vision.image_px, vision.image_px),),
        outputs=(float_spec("features", "crops", vision.n_patches, vision.dim),),
        example={"crops": 2},
    )


def _project(config: LlavaMiniConfig) -> GraphRequest:
    return GraphRequest(
        role="project",
        build=lambda module: _ProjectGraph(_llava(module)),
        inputs=(float_spec("features", 1, config.n_features, config.vision.dim),),
        outputs=(float_spec("tokens", 1, config.n_features + config.n_compressed, config.text.dim),),
        example={},
    )


def _prefuse(config: LlavaMiniConfig) -> GraphRequest:
    layers = config.prefusion
    return GraphRequest(
        role="prefuse",
        build=lambda module: _PrefuseGraph(_llava(module).prefusion),
        inputs=(*layers_inputs(layers), *cache_specs("past_key_values", layers)),
        outputs=(float_spec("fused", 1, "tokens", layers.dim), *cache_specs("present", layers)),
        example={"tokens": 3, "total": 5},
    )


def _llava(module: nn.Module) -> LlavaMini:
    assert isinstance(module, LlavaMini)
    return module
