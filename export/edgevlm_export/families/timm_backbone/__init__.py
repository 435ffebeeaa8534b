"""Image backbones of timm: FastViT, TinyViT, MobileCLIP's image towers, and whatever else timm can build.

timm supplies the modules, the checkpoint the weights: in timm's layout, or in that of TinyViT's authors or of Apple.
"""

from __future__ import annotations

from pathlib import Path

from edgevlm_export.checkpoint import Checkpoint
from edgevlm_export.families.family import ImageRecipe, InOnePlace, ManifestParts, ReadOptions
from edgevlm_export.families.timm_backbone.description import describe
from edgevlm_export.families.timm_backbone.graphs import image_graph
from edgevlm_export.families.timm_backbone.labels import read_labels
from edgevlm_export.families.timm_backbone.layouts import canonical
from edgevlm_export.families.timm_backbone.loading import load
from edgevlm_export.families.timm_backbone.preprocessing import read_image_spec
from edgevlm_export.families.timm_backbone.random_weights import write_shrunken
from edgevlm_export.reparameterize.tiny_vit import MAX_CONSTANT_BYTES, kept_gathers
from edgevlm_runtime.manifest import Task


class TimmBackboneFamily(InOnePlace):
    """See `Family`."""

    name = "timm_backbone"
    generates_text = False

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> ImageRecipe:
        """See `Family.read`."""
        where = str(checkpoint.path)
        description = describe(checkpoint.read_config(), options.variant, where)
        layout = canonical(checkpoint)
        image, preprocessing = read_image_spec(description, layout.origin, where)
        module = load(description, layout, where)
        labels = read_labels(description, module.num_classes, options.labels, where)
        notes = {"preprocessing": preprocessing}
        if n_blocks := kept_gathers(module):
            limit = f"{MAX_CONSTANT_BYTES >> 20} MiB"
            notes["attention bias"] = f"blocks where it is above {limit}, and gathered in each run: {n_blocks}"
        classifies = module.num_classes > 0 and (labels is not None or not description.is_clip_tower)
        tasks: tuple[Task, ...] = ("classify", "embed") if classifies else ("embed",)
        return ImageRecipe(
            family=self.name,
            graphs=(image_graph(module, image.crop_px, classifies=classifies, where=where),),
            parts=ManifestParts(tasks=tasks, image=image, notes=notes),
            labels=labels,
        )

    def shrink(self, out: Path) -> None:
        """See `Family.shrink`."""
        write_shrunken(out)
