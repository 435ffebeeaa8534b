"""Moondream 2 in both sizes and every generation since January 2025: from a checkpoint to a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgevlm_export.checkpoint import Checkpoint
from edgevlm_export.families.decoder_graph import whole_decoder
from edgevlm_export.families.family import InOnePlace, ManifestParts, ReadOptions, Recipe
from edgevlm_export.families.moondream2 import config as configs
from edgevlm_export.families.moondream2.eras import Era
from edgevlm_export.families.moondream2.graphs import graph_requests, text_of
from edgevlm_export.families.moondream2.layouts import canonical, is_packed
from edgevlm_export.families.moondream2.random_weights import write_shrunken
from edgevlm_export.families.moondream2.vocabulary import check_tokenizer, is_starmie
from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config
from edgevlm_export.tokenizer_file import open_tokenizer
from edgevlm_export.weights import match_weights, module_shapes
from edgevlm_runtime.manifest import CacheSpec, ImageSpec, RegionSpec, Task, TilingSpec


class Moondream2Family(InOnePlace):
    """See `Family`."""

    name = "moondream2"
    generates_text = True

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> Recipe:
        """See `Family.read`."""
        tensors = canonical(checkpoint)
        nested = configs.nested_config(checkpoint.read_config())
        config = configs.read_sizes(nested, tensors)
        weights = match_weights(module_shapes(build(config)), tensors, str(checkpoint.path))
        path = options.tokenizer or checkpoint.folder / "tokenizer.json"
        vocabulary = open_tokenizer(path)
        era = configs.find_era(
            configs.Evidence(
                tokenizer_config=nested.get("tokenizer", {}),
                revision=options.revision,
                starmie_tokenizer=is_starmie(vocabulary),
                packed=is_packed(checkpoint),
                small=config == configs.SIZE_05B,
            )
        )
        era = configs.read_prompts(era, nested.get("tokenizer", {}))
        check_tokenizer(path, vocabulary, era, config.text.vocab_size)
        return Recipe(
            family=self.name,
            build=lambda: build(config),
            weights=weights,
            graphs=graph_requests(config),
            parts=manifest_parts(config, era),
            embedding="text.wte",
            decoder=whole_decoder(text_of),
            tokenizer=path,
        )

    def shrink(self, out: Path) -> None:
        """See `Family.shrink`."""
        write_shrunken(out)


def build(config: Moondream2Config) -> nn.Module:
    """The module on the meta device."""
    with torch.device("meta"):
        return Moondream2(config)


def manifest_parts(config: Moondream2Config, era: Era) -> ManifestParts:
    """What the manifest says of this model."""
    text, vision, region = config.text, config.vision, config.region
    return ManifestParts(
        tasks=_tasks(era),
        image=ImageSpec(
            crop_px=vision.crop_size,
            resample="lanczos",
            mean=(0.5,) * vision.in_channels,
            std=(0.5,) * vision.in_channels,
            tiling=TilingSpec(
                patch_px=vision.enc_patch_size, margin_patches=vision.overlap_margin, max_crops=vision.max_crops
            ),
        ),
        cache=CacheSpec(
            n_layers=text.n_layers,
            n_kv_heads=text.n_kv_heads,
            head_dim=text.dim // text.n_heads,
            max_context=text.max_context,
        ),
        prompt=era.prompt(),
        region=RegionSpec(
            coordinate_bins=region.coord_out_dim, size_bins=region.size_out_dim // 2, size_scale=era.size_scale
        ),
        sampling=era.sampling,
    )


def _tasks(era: Era) -> tuple[Task, ...]:
    templates = era.templates
    offered: tuple[tuple[Task, object], ...] = (
        ("caption", templates.caption),
        ("query", templates.query),
        ("detect", templates.detect),
        ("point", templates.point),
    )
    return tuple(task for task, template in offered if template)
