"""TinyGPT-V, stages 1 to 4: from the files of its parts to a recipe."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from edgevlm_export.checkpoint import Checkpoint
from edgevlm_export.families.decoder_graph import whole_decoder
from edgevlm_export.families.family import ManifestParts, ReadOptions, Recipe
from edgevlm_export.families.tinygpt_v.files import Parts, find_files
from edgevlm_export.families.tinygpt_v.graphs import graph_requests, text_of
from edgevlm_export.families.tinygpt_v.layouts import canonical
from edgevlm_export.families.tinygpt_v.prompts import Style, find_style, make_prompts
from edgevlm_export.families.tinygpt_v.random_weights import write_shrunken
from edgevlm_export.families.tinygpt_v.sizes import read_sizes
from edgevlm_export.modules.tinygpt_v import TinyGptV, TinyGptVConfig
from edgevlm_export.tokenizer_file import open_tokenizer
from edgevlm_export.weights import match_weights, module_shapes
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import CacheSpec, ImageSpec, PromptSpec

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


class TinyGptVFamily:
    """See `Family`."""

    name = "tinygpt_v"
    generates_text = True
    takes = frozenset({"stage", "prompts"})

    def open(self, path: Path, options: ReadOptions) -> Checkpoint:
        """See `Family.open`."""
        return Parts(find_files(path, options.stage))

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> Recipe:
        """See `Family.read`."""
        assert isinstance(checkpoint, Parts)
        stage = checkpoint.files.stage
        style = find_style(options.prompts, stage)
        config = read_sizes(checkpoint, checkpoint.read_config())
        tensors = canonical(checkpoint, config)
        weights = match_weights(
            module_shapes(build(config)), tensors, str(checkpoint.path), "do the files belong together?"
        )
        path = options.tokenizer or checkpoint.folder / "tokenizer.json"
        prompt = make_prompts(style, _open_tokenizer(path, config), path)
        return Recipe(
            family=self.name,
            build=lambda: build(config),
            weights=weights,
            graphs=graph_requests(config),
            parts=manifest_parts(config, prompt, style, stage),
            embedding="text.wte",
            decoder=whole_decoder(text_of),
            tokenizer=path,
            scales_cache=False,
        )

    def shrink(self, out: Path) -> None:
        """See `Family.shrink`."""
        write_shrunken(out)


def build(config: TinyGptVConfig) -> nn.Module:
    """The module on the meta device."""
    with torch.device("meta"):
        return TinyGptV(config)


def manifest_parts(config: TinyGptVConfig, prompt: PromptSpec, style: Style, stage: int) -> ManifestParts:
    """What the manifest says of this model."""
    text = config.text
    return ManifestParts(
        tasks=("caption", "query", "detect") if style.tagged else ("caption", "query"),
        image=ImageSpec(crop_px=config.vision.image_px, resample="bicubic", mean=_MEAN, std=_STD),
        cache=CacheSpec(
            n_layers=text.n_layers, n_kv_heads=text.n_kv_heads, head_dim=text.head_dim, max_context=text.max_context
        ),
        prompt=prompt,
        sampling=style.sampling,
        notes={"trained in": f"stage {stage}", "asked as in": style.name},
    )


def _open_tokenizer(path: Path, config: TinyGptVConfig) -> Tokenizer:
    tokenizer = open_tokenizer(path)
    n_tokens = tokenizer.get_vocab_size(with_added_tokens=True)
    if n_tokens > config.text.vocab_size:
        raise CheckpointError(f"{path}: has {n_tokens} tokens, Phi-2 {config.text.vocab_size}; give Phi-2's")
    return tokenizer
