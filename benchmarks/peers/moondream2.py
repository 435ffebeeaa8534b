"""Moondream 2 as it is compared: its workload, and what that must cost."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.costs import (
    Costs,
    block_values,
    cache_values,
    encoder_values,
    layer_operations,
    text_values,
)
from benchmarks.peers.shapes import Shapes
from benchmarks.peers.workload import workload_for
from edgevlm_export.families.moondream2.random_weights import write_random
from edgevlm_export.modules.moondream2 import Moondream2Config, TextConfig, VisionConfig


def shapes(name: str, title: str, config: Moondream2Config) -> Shapes:
    """Its sizes by a name, with what follows from them."""
    prefix = 1 + config.vision.n_patches
    return Shapes(
        name=name,
        title=title,
        family="moondream2",
        config=config,
        workload=workload_for(side=config.vision.crop_size, context=config.text.max_context, prefix_tokens=prefix),
        costs=Costs(
            crop_operations=crop_operations(config.vision),
            prefix_operations=prefix_operations(config.text, prefix),
            text_values=text_values(config.text),
            cache_values=cache_values(config.text),
        ),
        write=partial(write_random, config=config),
        precisions=("int8", "int4"),
        compiled=True,
    )


def crop_operations(config: VisionConfig) -> int:
    """Multiplications and additions of encoding and projecting one crop."""
    dim, patches = config.enc_dim, config.n_patches
    layer = layer_operations(patches, encoder_values(dim, config.enc_ff_dim), patches**2, dim)
    embedding = config.in_channels * config.enc_patch_size**2 * dim
    projection = config.proj_inner_dim * (2 * dim + config.proj_out_dim)
    return config.enc_n_layers * layer + 2 * patches * (embedding + projection)


def prefix_operations(config: TextConfig, n_tokens: int) -> int:
    """The same of reading a prefix whose tokens all see each other, without logits."""
    return config.n_layers * layer_operations(n_tokens, block_values(config), n_tokens**2, config.dim)
