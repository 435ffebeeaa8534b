"""ViT classifiers: transformers' ViTForImageClassification."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from edgevlm_export.checkpoint import Checkpoint
from edgevlm_export.families.family import ImageRecipe, InOnePlace, ManifestParts, ReadOptions
from edgevlm_export.families.processor import read_image_spec
from edgevlm_export.families.published import Tower, build, image_graphs, image_input, match_towers, read_config
from edgevlm_export.families.random_published import write_random
from edgevlm_export.families.timm_backbone.labels import read_label_file
from edgevlm_export.optimum_trace import OptimumExporter
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import TensorSpec

_EXPORTER = OptimumExporter(
    library="transformers",
    model_type="vit",
    task="image-classification",
    inputs=("pixel_values",),
    outputs=("logits", "features"),
)
_NAMELESS = re.compile(r"LABEL_\d+")  # what transformers calls classes that nobody named


class VitFamily(InOnePlace):
    """See `Family`."""

    name = "vit"
    generates_text = False

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> ImageRecipe:
        """See `Family.read`."""
        config = read_config(checkpoint, "vit", _make_config)
        towers = (_tower(checkpoint, config),)
        weights = match_towers(checkpoint, towers, {})
        labels = read_label_file(options.labels, config.num_labels) if options.labels else _labels(checkpoint, config)
        return ImageRecipe(
            family=self.name,
            graphs=image_graphs(checkpoint, towers, weights),
            parts=ManifestParts(
                tasks=("classify", "embed"),
                image=read_image_spec(checkpoint.folder, "ViT", config.image_size),
            ),
            labels=labels,
        )

    def shrink(self, out: Path) -> None:
        """See `Family.shrink`."""
        out.mkdir(parents=True, exist_ok=True)
        sizes = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
        names = dict(enumerate(("circle", "square", "triangle", "digit", "word", "arrow, or pointer", "nothing")))
        write_random(
            out, "ViTForImageClassification", {**sizes, "image_size": 32, "patch_size": 8, "id2label": names}, {}
        )
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}, "resample": 2}
        (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def _make_config(data: dict[str, Any]) -> Any:
    from transformers import ViTConfig

    return ViTConfig.from_dict(data)


def _tower(checkpoint: Checkpoint, config: Any) -> Tower:
    return Tower(
        role="classifier",
        build=partial(_build, config),
        exporter=_EXPORTER,
        input=image_input(checkpoint, config),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=("images", config.num_labels)),
            TensorSpec(name="features", dtype="float32", shape=("images", config.hidden_size)),
        ),
    )


def _build(config: Any) -> nn.Module:
    module = build("ViTForImageClassification", config)
    # The exporter and the reference call it; what the classifier reads is not among its own outputs.
    vit, classifier = module.vit, module.classifier
    assert isinstance(vit, nn.Module) and isinstance(classifier, nn.Module)

    def forward(pixel_values: Tensor) -> dict[str, Tensor]:
        features = vit(pixel_values).last_hidden_state[:, 0]
        return {"logits": classifier(features), "features": features}

    module.forward = forward
    return module


def _labels(checkpoint: Checkpoint, config: Any) -> tuple[str, ...] | None:
    """The names of classes in config.json, None where it has none.

    Raises:
        CheckpointError: it names some of them only.
    """
    names = config.id2label
    if sorted(names) != list(range(config.num_labels)):
        path = checkpoint.folder / "config.json"
        raise CheckpointError(f"{path}: id2label has {len(names)} names, not one for each class from 0; give --labels")
    labels = tuple(" ".join(str(names[i]).split()) for i in range(config.num_labels))
    return None if all(map(_NAMELESS.fullmatch, labels)) else labels
