"""LLaVA-Mini on Llama 3.1: from a checkpoint, with or without its vision tower in it, to a recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from edgevlm_export.checkpoint import Checkpoint, HubSource, download, open_checkpoint
from edgevlm_export.families.decoder_graph import whole_decoder
from edgevlm_export.families.family import ManifestParts, ReadOptions, Recipe
from edgevlm_export.families.llava_mini.config import read_sizes, selected_layer, tower_sizes
from edgevlm_export.families.llava_mini.graphs import graph_requests, text_of, whole_fuser
from edgevlm_export.families.llava_mini.layouts import canonical, tower_tensors
from edgevlm_export.families.llava_mini.prompts import RAW_IDS, SAMPLING, make_prompts
from edgevlm_export.families.llava_mini.random_weights import write_shrunken
from edgevlm_export.families.processor import PREPROCESSOR, read_image_spec
from edgevlm_export.modules.llava_mini import LlavaMini, LlavaMiniConfig
from edgevlm_export.tokenizer_file import open_tokenizer
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import CacheSpec, CenterCropSpec, FrameSpec, FusionSpec, ImageSpec

TOWER_FOLDER = "vision_tower"
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class Files(Checkpoint):
    """A checkpoint and its vision tower, whose folder has the tower's small files, if any, wherever its tensors are."""

    def __init__(self, own: Checkpoint, tower: Checkpoint) -> None:
        super().__init__(own.path, dict(own))
        self.tower = tower


class LlavaMiniFamily:
    """See `Family`."""

    name = "llava_mini"
    generates_text = True
    takes = frozenset({"vision_tower"})

    def open(self, path: Path, options: ReadOptions) -> Files:
        """See `Family.open`. The tower is the one of the options if it is a folder, else that of the checkpoint itself
        or of the folder vision_tower beside it, and published ones come last."""
        own = open_checkpoint(path)
        source, beside = options.vision_tower, own.folder / TOWER_FOLDER
        if isinstance(source, Path):
            return Files(own, open_checkpoint(source))
        if tower_tensors(own):
            return Files(own, Checkpoint(beside / "config.json", dict(own)))
        if beside.is_dir():
            return Files(own, open_checkpoint(beside))
        if isinstance(source, HubSource):
            return Files(own, open_checkpoint(download(source)))
        raise CheckpointError(
            f"{path}: has no vision tower, and {beside} is not there; give one with --vision-tower DIR"
        )

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> Recipe:
        """See `Family.read`."""
        assert isinstance(checkpoint, Files)
        data, tower = checkpoint.read_config(), tower_tensors(checkpoint.tower)
        config = read_sizes(data, tower_sizes(tower, checkpoint.tower.read_config(), selected_layer(data)))
        weights = canonical(checkpoint, tower, config, str(checkpoint.path))
        path = options.tokenizer or checkpoint.folder / "tokenizer.json"
        tokenizer = open_tokenizer(path)
        n_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
        if n_tokens > config.text.vocab_size:
            raise CheckpointError(f"{path}: has {n_tokens} tokens, the model {config.text.vocab_size}; give its own")
        return Recipe(
            family=self.name,
            build=lambda: build(config),
            weights=weights,
            graphs=graph_requests(config),
            parts=ManifestParts(
                tasks=("caption", "query"),
                image=image_spec(config, checkpoint.tower.folder),
                cache=cache_spec(config),
                fusion=fusion_spec(config),
                prompt=make_prompts(checkpoint.folder, tokenizer, path),
                sampling=SAMPLING,
            ),
            embedding="text.wte",
            decoder=whole_decoder(text_of),
            fuser=whole_fuser,
            tokenizer=path,
        )

    def shrink(self, out: Path) -> None:
        """See `Family.shrink`."""
        write_shrunken(out)


def build(config: LlavaMiniConfig) -> nn.Module:
    """The module on the meta device."""
    with torch.device("meta"):
        return LlavaMini(config)


def image_spec(config: LlavaMiniConfig, tower: Path) -> ImageSpec:
    """How the tower's own processor makes crops, OpenAI's where its folder has none; the rest is this family's."""
    side = config.vision.image_px
    if (tower / PREPROCESSOR).is_file():
        spec = read_image_spec(tower, "CLIP", side)
    else:
        crop = CenterCropSpec(shortest_px=side, rounding="floor")
        spec = ImageSpec(crop_px=side, resample="bicubic", mean=_MEAN, std=_STD, center_crop=crop)
    return replace(spec, split=config.resolution_ratio, frames=FrameSpec())


def cache_spec(config: LlavaMiniConfig) -> CacheSpec:
    """The decoder's cache."""
    text = config.text
    return CacheSpec(
        n_layers=text.n_layers, n_kv_heads=text.n_kv_heads, head_dim=text.head_dim, max_context=text.max_context
    )


def fusion_spec(config: LlavaMiniConfig) -> FusionSpec:
    """The cache of the layers before it."""
    layers = config.prefusion
    return FusionSpec(
        n_compressed=config.n_compressed,
        n_layers=layers.n_layers,
        n_kv_heads=layers.n_kv_heads,
        head_dim=layers.head_dim,
        max_context=layers.max_context,
        raw_ids=RAW_IDS,
    )
