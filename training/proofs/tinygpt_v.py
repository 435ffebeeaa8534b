"""TinyGPT-V of stage 4 in small: sizes, and how it computes while it learns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgevlm_export.families.tinygpt_v.files import LARGE_STAGE
from edgevlm_export.families.tinygpt_v.layouts import resize_positions
from edgevlm_export.families.tinygpt_v.prompts import find_style, make_prompts
from edgevlm_export.modules.tinygpt_v import (
    QFormer,
    QFormerConfig,
    Text,
    TextConfig,
    TinyGptVConfig,
    Vision,
    VisionConfig,
)
from edgevlm_export.tokenizer_file import open_tokenizer
from edgevlm_runtime.prompts import control_ids
from edgevlm_runtime.tokenizer import TextTokenizer
from training.batches import Packed
from training.dialogue import Exchange
from training.model import sincos_positions
from training.proofs.learner import CONTEXT, PATCH_SIDE, SIDE, VOCAB, Learner, normalized, start
from training.proofs.sequences import BundleLayouts, causal_mask, causal_positions
from training.proofs.tinygpt_v_files import PHI, write_small_files, write_tensors

SIZES = TinyGptVConfig(
    vision=VisionConfig(dim=176, ff_dim=416, n_layers=5, n_heads=2, patch_px=PATCH_SIDE, grid=SIDE // PATCH_SIDE),
    qformer=QFormerConfig(dim=128, ff_dim=256, n_layers=3, n_heads=2, n_queries=32),
    text=TextConfig(dim=160, ff_dim=400, n_layers=3, n_heads=4, rotary_dim=16, vocab_size=VOCAB, max_context=CONTEXT),
)
"""2.9 million parameters."""


class _Resized(nn.Module):
    """Position embeddings as they are published, for half the side, to those of stage 4."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, positions: Tensor) -> Tensor:
        return resize_positions(positions, self.grid)


class TinyGptVLearner(Learner):
    """See `Learner`. Norms of queries and keys have no bias: the published model has none either."""

    vision: Vision
    text_length = 288

    def __init__(self) -> None:
        super().__init__()
        self.vision_dim = SIZES.vision.dim
        self.vision = Vision(SIZES.vision)
        self.qformer = QFormer(SIZES.qformer, SIZES.vision.dim, SIZES.text.dim)
        self.text = Text(SIZES.text)
        start(self)
        self._begin_positions()
        for name, parameter in self.text.named_parameters():
            if name.endswith(("q_ln.bias", "k_ln.bias")):
                parameter.requires_grad_(False)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vision.encode(normalized(pixels))

    def patches(self, features: Tensor) -> Tensor:
        return features[:, 1:]

    def hidden(self, features: Tensor, packed: Packed, before: Tensor) -> Tensor:
        image = self.qformer(features)
        start_words, words = self.text.embed(before.expand(len(image), -1)), self.text.embed(packed.ids)
        n_prefix = len(before) + image.shape[1]
        hidden = self.text.hidden(
            torch.cat((start_words, image, words), dim=1),
            causal_positions(packed, n_prefix),
            causal_mask(packed, n_prefix),
        )
        return hidden[:, n_prefix:]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.text.logits(hidden)

    def prepare(self, folder: Path, said: Iterable[Exchange]) -> None:
        write_small_files(folder, SIZES, said)

    def layouts(self, folder: Path) -> BundleLayouts:
        path = folder / PHI / "tokenizer.json"
        spec = make_prompts(find_style(None, LARGE_STAGE), open_tokenizer(path), path)
        return BundleLayouts(spec, TextTokenizer(path, control_ids(spec)))

    def publish(self, folder: Path) -> None:
        write_tensors(folder, SIZES, dict(self.state_dict()))

    def _begin_positions(self) -> None:
        side, dim = SIZES.vision.grid // 2, SIZES.vision.dim
        places = torch.cat((torch.zeros(1, dim), 0.5 * sincos_positions(side, dim)))[None]
        self.vision.pos_emb = nn.Parameter(places)
        parametrize.register_parametrization(self.vision, "pos_emb", _Resized(SIZES.vision.grid), unsafe=True)
