"""LLaVA-Mini in small: sizes, and how it computes while it learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgevlm_export.families.llava_mini.prompts import make_prompts
from edgevlm_export.families.llava_mini.random_weights import FULL, sine_positions
from edgevlm_export.modules.clip_vision import ClipVision, ClipVisionConfig
from edgevlm_export.modules.layers import LayerNorm, Linear, Mlp, full_attention
from edgevlm_export.modules.llama import Llama, LlamaLayers
from edgevlm_export.modules.llava_mini import (
    CompressorTensors,
    LlavaMiniConfig,
    fold_key_positions,
    fold_queries,
    n_compressor_heads,
)
from edgevlm_export.tokenizer_file import open_tokenizer
from edgevlm_runtime.prompts import control_ids
from edgevlm_runtime.tokenizer import TextTokenizer
from training.batches import Packed
from training.dialogue import Exchange
from training.model import sincos_positions
from training.proofs.learner import CONTEXT, PATCH_SIDE, SIDE, VOCAB, Learner, normalized, start
from training.proofs.llava_mini_files import write_small_files, write_tensors
from training.proofs.sequences import BundleLayouts, causal_mask, causal_positions, is_prompt


def sizes(compressor_size: int) -> LlavaMiniConfig:
    """2.9 million parameters, a fifth of the image encoder's in a layer that is stored and never used."""
    text = replace(
        FULL.text,
        dim=160,
        ff_dim=320,
        n_layers=2,
        n_heads=5,
        n_kv_heads=5,
        vocab_size=VOCAB,
        max_context=CONTEXT,
        rope_theta=10000.0,
    )
    vision = ClipVisionConfig(dim=160, ff_dim=448, n_layers=4, n_heads=5, patch_px=PATCH_SIDE, image_px=SIDE)
    return replace(FULL, text=text, vision=vision, compressor_size=compressor_size, n_prefusion_layers=3)


class TrainedCompressor(nn.Module):
    """The compressor with its parameters as published, from which those of the export's are folded."""

    positions: Tensor

    def __init__(self, config: LlavaMiniConfig) -> None:
        super().__init__()
        dim, self.n_keys = config.vision.dim, config.compressed_grid**2
        self.dim = dim
        self.ln_q, self.ln_kv = LayerNorm(dim), LayerNorm(dim)
        self.query = nn.Parameter(torch.empty(config.n_compressed, dim))
        self.in_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = Linear(dim, dim)
        self.register_buffer("positions", sine_positions(config.compressor_size, dim))

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, patches, dim) to (n, queries, dim)."""
        x = self.ln_kv(features)
        _, of_keys, of_values = self.in_weight.split(self.dim)
        queries = fold_queries(self._tensors()).expand(len(features), -1, -1)
        keys = functional.linear(x, of_keys) + fold_key_positions(self._tensors(), self.n_keys)
        values = functional.linear(x, of_values, self.in_bias[2 * self.dim :])
        y: Tensor = self.out_proj(full_attention(n_compressor_heads(self.dim))(queries, keys, values))
        return y

    def _tensors(self) -> CompressorTensors:
        return CompressorTensors(
            query=self.query,
            positions=self.positions,
            ln_weight=self.ln_q.weight,
            ln_bias=self.ln_q.bias,
            in_weight=self.in_weight,
            in_bias=self.in_bias,
        )


class LlavaMiniLearner(Learner):
    """See `Learner`."""

    vision: ClipVision
    text_length = 176

    def __init__(self, compressor_size: int) -> None:
        super().__init__()
        config = self.config = sizes(compressor_size)
        self.vision_dim = config.vision.dim
        self.vision = ClipVision(config.vision)
        self.compressor = TrainedCompressor(config)
        self.projector = Mlp(config.vision.dim, config.text.dim, config.text.dim, exact=True)
        self.prefusion = LlamaLayers(config.prefusion)
        self.text = Llama(config.text)
        start(self)
        with torch.no_grad():
            self.vision.pos_emb[1:] = 0.5 * sincos_positions(config.vision.grid, config.vision.dim)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.vision.encode(normalized(pixels))

    def patches(self, features: Tensor) -> Tensor:
        return features

    def hidden(self, features: Tensor, packed: Packed, before: Tensor) -> Tensor:
        image = self.projector(torch.cat((features, self.compressor(features)), dim=1))
        start_words = self.text.embed(before.expand(len(image), -1))
        words = self.text.embed(packed.ids)
        n_image, n_before = image.shape[1], len(before)
        fused = self.prefusion.hidden(
            torch.cat((image, start_words, words), dim=1),
            causal_positions(packed, n_image + n_before),
            causal_mask(packed, n_image + n_before),
        )
        _, compressed, fused_start, fused_words = fused.split(
            (n_image - self.config.n_compressed, self.config.n_compressed, n_before, words.shape[1]), dim=1
        )
        mixed = torch.where(is_prompt(packed)[..., None], fused_words, words)
        n_prefix = n_before + self.config.n_compressed
        hidden = self.text.hidden(
            torch.cat((fused_start, compressed, mixed), dim=1),
            causal_positions(packed, n_prefix),
            causal_mask(packed, n_prefix),
        )
        return hidden[:, n_prefix:]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.text.logits(hidden)

    def prepare(self, folder: Path, said: Iterable[Exchange]) -> None:
        write_small_files(folder, self.config, said)

    def layouts(self, folder: Path) -> BundleLayouts:
        path = folder / "tokenizer.json"
        spec = make_prompts(folder, open_tokenizer(path), path)
        return BundleLayouts(spec, TextTokenizer(path, control_ids(spec)))

    def publish(self, folder: Path) -> None:
        write_tensors(folder, self.config, dict(self.state_dict()))
