"""Random checkpoints in the published layout: tiny ones for tests, full-size ones to measure memory and speed.

Written tensor by tensor, in slices, so that the memory needed does not grow with the model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor

from edgevlm_export.families.moondream2.eras import STARMIE, Era, Templates
from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, RegionConfig, TextConfig, VisionConfig
from edgevlm_export.weights import module_shapes
from edgevlm_runtime.manifest import Template

TINY = Moondream2Config(
    text=TextConfig(
        dim=64, ff_dim=172, n_layers=2, n_heads=2, n_kv_heads=1, vocab_size=512, max_context=256, prefix_attn=26
    ),
    vision=VisionConfig(
        enc_dim=48,
        enc_ff_dim=134,
        enc_n_layers=2,
        enc_n_heads=2,
        crop_size=70,
        proj_inner_dim=96,
        proj_out_dim=64,
        max_crops=6,
        overlap_margin=1,
    ),
    region=RegionConfig(dim=64, coord_feat_dim=32, coord_out_dim=128, size_feat_dim=48, size_out_dim=256, inner_dim=96),
)
TINY_ERA = replace(
    STARMIE,
    templates=Templates(
        caption={"short": (1, 300, 2, 301, 3), "normal": (1, 300, 2, 302, 3), "long": (1, 300, 2, 303, 3)},
        query=Template(prefix=(1, 304, 2), suffix=(3,)),
        detect=Template(prefix=(1, 305, 306, 2), suffix=(3,)),
        point=Template(prefix=(1, 307, 2), suffix=(3,)),
    ),
)
_SLICE = 1 << 24  # values made at once
_N_SPECIAL = 10  # the starmie tokenizer's control tokens come first
# Large language models have a few channels this much above the rest: 6 of 2048, and none of a tiny one's.
_OUTLIER_CHANNELS = 6 / 2048
_OUTLIER_SCALE = 12.0
_LOGIT_SPREAD = 0.25  # standard deviation


def write_shrunken(out: Path, seed: int = 0) -> None:
    """A checkpoint of about 0.3 million parameters with every part of the family, and its tokenizer."""
    write_random(out, TINY, TINY_ERA, seed=seed)


def write_random(out: Path, config: Moondream2Config, era: Era = STARMIE, *, seed: int = 0) -> None:
    """model.safetensors in bfloat16 behind `model.`, config.json and tokenizer.json; under 1 GB of memory at any size.

    The published 2B checkpoint's config.json says nothing, so neither does this one's.
    """
    out.mkdir(parents=True, exist_ok=True)
    nested = {} if config == Moondream2Config() and era is STARMIE else _describe(config, era)
    published = {"architectures": ["HfMoondream"], "config": nested, "model_type": "moondream1"}
    (out / "config.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")
    make_tokenizer(config.text.vocab_size).save(str(out / "tokenizer.json"))
    with torch.device("meta"):
        shapes = module_shapes(Moondream2(config))
    _write_safetensors(out / "model.safetensors", shapes, torch.Generator().manual_seed(seed))


def _describe(config: Moondream2Config, era: Era) -> dict[str, Any]:
    ids = {name: getattr(era, name) for name in era.id_names}
    return {**asdict(config), "tokenizer": {**ids, "templates": asdict(era.templates)}}


def _write_safetensors(file: Path, shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[f"model.{name}"] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for part in _random_slices(name, shape, generator):
                opened.write(part.bfloat16().view(torch.uint8).numpy().data)


def _random_slices(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Iterator[Tensor]:
    """Normal values in slices of the first axis: matrices keep their input's magnitude, norms start as the identity.

    Logits are small: no token of 51,200 is right, and roundings should not seem to choose.
    """
    if re.search(r"ln\d?\.weight$", name):
        yield _norm_weight(name, shape[0], generator)
        return
    width = math.prod(shape[1:])
    std = 1.0 if name.endswith("features") else 0.02 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
    std *= _LOGIT_SPREAD if name.startswith("text.lm_head.") else 1.0
    rows = max(1, _SLICE // width)
    for start in range(0, shape[0], rows):
        yield torch.randn(min(rows, shape[0] - start), width, generator=generator) * std


def _norm_weight(name: str, dim: int, generator: torch.Generator) -> Tensor:
    weight = torch.ones(dim)
    if name.startswith("text.blocks."):
        weight[torch.randperm(dim, generator=generator)[: int(dim * _OUTLIER_CHANNELS)]] = _OUTLIER_SCALE
    return weight


def make_tokenizer(n_tokens: int) -> Tokenizer:
    """A byte-level tokenizer with starmie's control tokens first, then 256 bytes, then words up to n_tokens."""
    specials = ["<|endoftext|>", *(f"<|control{i}|>" for i in range(1, _N_SPECIAL))]
    tokens = [*specials, *sorted(ByteLevel.alphabet())]
    tokens += [f"Ġword{i}" for i in range(len(tokens), n_tokens)]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    return tokenizer
