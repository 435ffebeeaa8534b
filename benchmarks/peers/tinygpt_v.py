"""TinyGPT-V as it is compared: its workload, and what that must cost. Vision ends with the Q-Former's projection."""

from __future__ import annotations

from functools import partial

from benchmarks.peers.costs import (
    Costs,
    block_values,
    cache_values,
    causal_pairs,
    encoder_values,
    layer_operations,
    text_values,
)
from benchmarks.peers.shapes import Shapes
from benchmarks.peers.workload import workload_for
from edgevlm_export.families.tinygpt_v.random_weights import Form, write_random
from edgevlm_export.modules.tinygpt_v import CHANNELS, TextConfig, TinyGptVConfig

WORDS_BEFORE = 6
"""What stands before an image, as the random checkpoint's tokenizer cuts it."""


def shapes(name: str, title: str, config: TinyGptVConfig) -> Shapes:
    """Its sizes by a name, with what follows from them."""
    prefix = WORDS_BEFORE + config.qformer.n_queries

    return Shapes(
        name=name,
        title=title,
        family="tinygpt_v",
        config=config,
        workload=workload_for(side=config.vision.image_px, context=config.text.max_context, prefix_tokens=prefix),
        costs=Costs(
            crop_operations=encoder_operations(config) + qformer_operations(config),
            prefix_operations=prefix_operations(config.text, prefix),
            text_values=text_values(config.text),
            cache_values=cache_values(config.text),
        ),
        write=partial(write_random, config=config, form=Form()),
    )


def encoder_operations(config: TinyGptVConfig) -> int:
    """Multiplications and additions of encoding one image."""
    vision = config.vision
    embedding = 2 * vision.grid**2 * CHANNELS * vision.patch_px**2 * vision.dim
    values = encoder_values(vision.dim, vision.ff_dim)
    return embedding + vision.n_layers * layer_operations(vision.n_tokens, values, vision.n_tokens**2, vision.dim)


def qformer_operations(config: TinyGptVConfig) -> int:
    """The same of the queries that look at it, and of their projection."""
    sizes, n_keys = config.qformer, config.vision.n_tokens
    n_queries, dim = sizes.n_queries, sizes.dim
    layer = layer_operations(n_queries, encoder_values(dim, sizes.ff_dim), n_queries**2, dim)
    keys = 2 * n_keys * 2 * dim * config.vision.dim
    looking = keys + layer_operations(n_queries, 2 * dim**2, n_queries * n_keys, dim)
    n_looking = -(-sizes.n_layers // sizes.cross_every)
    return sizes.n_layers * layer + n_looking * looking + 2 * n_queries * dim * config.text.dim


def prefix_operations(config: TextConfig, n_tokens: int) -> int:
    """The same of reading a prefix, without logits."""
    return config.n_layers * layer_operations(n_tokens, block_values(config), causal_pairs(n_tokens), config.dim)
