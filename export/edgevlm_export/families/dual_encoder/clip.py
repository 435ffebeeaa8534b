"""CLIP and all that is published as transformers' CLIPModel, such as TinyCLIP."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from edgevlm_export.checkpoint import Checkpoint
from edgevlm_export.families.dual_encoder.shrunken import write_clip
from edgevlm_export.families.dual_encoder.vocabulary import clip_text
from edgevlm_export.families.family import ImageRecipe, InOnePlace, ManifestParts, ReadOptions
from edgevlm_export.families.processor import read_image_spec
from edgevlm_export.families.published import (
    Tower,
    build,
    image_graphs,
    image_input,
    match_towers,
    read_config,
    read_scalar,
)
from edgevlm_export.optimum_trace import OptimumExporter
from edgevlm_export.tokenizer_file import open_tokenizer
from edgevlm_runtime.manifest import MatchSpec, TensorSpec

_VISION = OptimumExporter(
    library="transformers",
    model_type="clip_vision_model",
    task="feature-extraction",
    inputs=("pixel_values",),
    outputs=("image_embeds",),
)
_TEXT = OptimumExporter(
    library="diffusers",
    model_type="clip-text-with-projection",
    task="feature-extraction",
    inputs=("input_ids",),
    outputs=("text_embeds",),
)


class ClipFamily(InOnePlace):
    """See `Family`."""

    name = "clip"
    generates_text = False

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> ImageRecipe:
        """See `Family.read`."""
        config = read_config(checkpoint, "clip", _make_config)
        towers = _towers(checkpoint, config)
        weights = match_towers(checkpoint, towers, {"logit_scale": ()})
        path = options.tokenizer or checkpoint.folder / "tokenizer.json"
        return ImageRecipe(
            family=self.name,
            graphs=image_graphs(checkpoint, towers, weights),
            parts=ManifestParts(
                tasks=("classify", "embed", "search"),
                image=read_image_spec(checkpoint.folder, "CLIP", config.vision_config.image_size),
                text=clip_text(path, open_tokenizer(path), config.text_config),
                match=MatchSpec(
                    scale=math.exp(read_scalar(weights, "logit_scale")),
                    bias=0.0,
                    activation="softmax",
                    template="a photo of a {}.",
                ),
            ),
            tokenizer=path,
        )

    def shrink(self, out: Path) -> None:
        """See `Family.shrink`."""
        write_clip(out)


def _make_config(data: dict[str, Any]) -> Any:
    from transformers import CLIPConfig

    config = CLIPConfig.from_dict(data)
    # The towers by themselves take it from their own parts of the file, which may not say it.
    config.vision_config.projection_dim = config.text_config.projection_dim = config.projection_dim
    return config


def _towers(checkpoint: Checkpoint, config: Any) -> tuple[Tower, ...]:
    context = config.text_config.max_position_embeddings
    vision = Tower(
        role="vision",
        build=partial(build, "CLIPVisionModelWithProjection", config.vision_config),
        exporter=_VISION,
        input=image_input(checkpoint, config.vision_config),
        outputs=(TensorSpec(name="embeddings", dtype="float32", shape=("images", config.projection_dim)),),
    )
    text = Tower(
        role="text",
        build=partial(build, "CLIPTextModelWithProjection", config.text_config),
        exporter=_TEXT,
        input=TensorSpec(name="token_ids", dtype="int64", shape=("texts", "tokens")),
        outputs=(TensorSpec(name="embeddings", dtype="float32", shape=("texts", config.projection_dim)),),
        tokens=context,
    )
    return vision, text
