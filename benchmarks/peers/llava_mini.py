"""LLaVA-Mini as it is compared: its workload, and what that must cost.

Vision ends with the projection of all patches and of what they are compressed to; the layers that mix them with the
words before the image, and the decoder's reading of what comes of that, are the prefix.
"""

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
from edgevlm_export.families.llava_mini.random_weights import write_random
from edgevlm_export.modules.clip_vision import CHANNELS
from edgevlm_export.modules.llava_mini import LlavaMiniConfig

WORDS_BEFORE = 68
"""The system's words and the user's header, as the random checkpoint's tokenizer cuts them."""
_GATED = 3  # matrices of an MLP


def shapes(name: str, title: str, config: LlavaMiniConfig) -> Shapes:
    """Its sizes by a name, with what follows from them; images are looked at as a whole only."""
    prefix = WORDS_BEFORE + config.n_compressed
    return Shapes(
        name=name,
        title=title,
        family="llava_mini",
        config=config,
        workload=workload_for(
            side=config.vision.image_px,
            context=config.text.max_context,
            prefix_tokens=prefix,
            shortest=prefix,  # without an image the same words come before a question
        ),
        costs=Costs(
            crop_operations=crop_operations(config),
            prefix_operations=prefix_operations(config, prefix),
            text_values=text_values(config.text, mlp_matrices=_GATED),
            cache_values=cache_values(config.text),
        ),
        write=partial(write_random, config=config),
    )


def crop_operations(config: LlavaMiniConfig) -> int:
    """Multiplications and additions of encoding, compressing and projecting one image."""
    vision, n_queries = config.vision, config.n_compressed
    n_tokens = 1 + vision.n_patches
    layer = layer_operations(n_tokens, encoder_values(vision.dim, vision.ff_dim), n_tokens**2, vision.dim)
    embedding = 2 * vision.n_patches * CHANNELS * vision.patch_px**2 * vision.dim
    # Queries are constants: only keys and values are computed, what they come to, and its projection.
    keys = layer_operations(vision.n_patches, 2 * vision.dim**2, n_queries * vision.n_patches, vision.dim)
    compressed = keys + 2 * n_queries * vision.dim**2
    projection = 2 * (vision.n_patches + n_queries) * config.text.dim * (vision.dim + config.text.dim)
    return vision.n_layers * layer + embedding + compressed + projection


def prefix_operations(config: LlavaMiniConfig, n_tokens: int) -> int:
    """The same of mixing an image with the words before it, and of reading a prefix of `n_tokens`, without logits."""
    text = config.text
    mixed = config.vision.n_patches + n_tokens
    values = block_values(text, mlp_matrices=_GATED)
    mixing = config.n_prefusion_layers * layer_operations(mixed, values, causal_pairs(mixed), text.dim)
    return mixing + text.n_layers * layer_operations(n_tokens, values, causal_pairs(n_tokens), text.dim)
