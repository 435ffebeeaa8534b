"""SigLIP, and SigLIP 2 at fixed resolution: both are published as transformers' SiglipModel."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from edgevlm_export.checkpoint import Checkpoint
from edgevlm_export.families.dual_encoder.shrunken import write_siglip
from edgevlm_export.families.dual_encoder.vocabulary import siglip_text
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
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import MatchSpec, TensorSpec

_VISION = OptimumExporter(
    library="transformers",
    model_type="siglip_vision_model",
    task="feature-extraction",
    inputs=("pixel_values",),
    outputs=("pooler_output",),
)
_TEXT = OptimumExporter(
    library="transformers",
    model_type="siglip-text",
    task="feature-extraction",
    inputs=("input_ids",),
    outputs=("pooler_output",),
)


class SiglipFamily(InOnePlace):
    """See `Family`."""

    name = "siglip"
    generates_text = False

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> ImageRecipe:
        """See `Family.read`."""
        config = read_config(checkpoint, "siglip", _make_config)
        _check_sizes(checkpoint, config)
        towers = _towers(checkpoint, config)
        weights = match_towers(checkpoint, towers, {"logit_scale": (1,), "logit_bias": (1,)})
        path = options.tokenizer or checkpoint.folder / "tokenizer.json"
        return ImageRecipe(
            family=self.name,
            graphs=image_graphs(checkpoint, towers, weights),
            parts=ManifestParts(
                tasks=("classify", "embed", "search"),
                image=read_image_spec(checkpoint.folder, "Siglip", config.vision_config.image_size),
                text=siglip_text(path, open_tokenizer(path), config.text_config),
                match=MatchSpec(
                    scale=math.exp(read_scalar(weights, "logit_scale")),
                    bias=read_scalar(weights, "logit_bias"),
                    activation="sigmoid",
                    template="This is a photo of {}.",
                ),
            ),
            tokenizer=path,
        )

    def shrink(self, out: Path) -> None:
        """See `Family.shrink`."""
        write_siglip(out)


def _make_config(data: dict[str, Any]) -> Any:
    from transformers import SiglipConfig

    return SiglipConfig.from_dict(data)


def _check_sizes(checkpoint: Checkpoint, config: Any) -> None:
    image_dim, text_dim = config.vision_config.hidden_size, config.text_config.projection_size
    if image_dim != text_dim:
        raise CheckpointError(
            f"{checkpoint.folder / 'config.json'}: images have embeddings of {image_dim} values, texts of {text_dim}"
        )


def _towers(checkpoint: Checkpoint, config: Any) -> tuple[Tower, ...]:
    context = config.text_config.max_position_embeddings
    dim = config.vision_config.hidden_size
    vision = Tower(
        role="vision",
        build=partial(build, "SiglipVisionModel", config.vision_config),
        exporter=_VISION,
        input=image_input(checkpoint, config.vision_config),
        outputs=(TensorSpec(name="embeddings", dtype="float32", shape=("images", dim)),),
    )
    # Trained on texts of this very length: the tower looks at all of them, and at what pads them.
    text = Tower(
        role="text",
        build=partial(build, "SiglipTextModel", config.text_config),
        exporter=_TEXT,
        input=TensorSpec(name="token_ids", dtype="int64", shape=("texts", context)),
        outputs=(TensorSpec(name="embeddings", dtype="float32", shape=("texts", dim)),),
    )
    return vision, text
