"""LLaVA-Mini from its published description, on transformers' own classes: slow, literal, no shared code.

Tensors go by their published names. Nothing is cached and nothing folded: every prompt runs whole, masked positions
and all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.image_utils import PILImageResampling
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

PLACEHOLDER = -200
COMPRESSOR_HEAD = 128
MASKED = torch.finfo(torch.float32).min


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What is fused of one image or frame: compressed tokens (n, dim) and the words (tokens, dim)."""

    compressed: Tensor
    words: Tensor


class Oracle:
    """The model of a config.json and tensors; the tower's start with `vision_model.`."""

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor], tower: Mapping[str, Any]) -> None:
        self.tensors = {name: tensor.float() for name, tensor in tensors.items()}
        self.side = int(config.get("compressor_size", 2))
        self.ratio = int(config.get("resolution_ratio", 1))
        self.llama_config = LlamaConfig(
            **{key: value for key, value in config.items() if key not in ("architectures", "model_type")},
            attn_implementation="eager",
        )
        self.clip = _load(CLIPVisionModel(CLIPVisionConfig(**tower, attn_implementation="eager")), self._below(""))
        self.llama = _load(LlamaForCausalLM(self.llama_config), self._below(""))
        self.rotary = LlamaRotaryEmbedding(self.llama_config)
        self.prefusion = [
            _load(LlamaDecoderLayer(self.llama_config, layer_idx=i), self._below(f"model.prefusion_layers.{i}."))
            for i in range(int(config.get("prefusion_layer_num", 4)))
        ]
        dim = int(tower["hidden_size"])
        self.attention = nn.MultiheadAttention(dim, max(1, dim // COMPRESSOR_HEAD), batch_first=True)
        _load(self.attention, self._below("model.compressor.attn."))
        self.processor = CLIPImageProcessor(
            size={"shortest_edge": tower["image_size"]},
            crop_size=tower["image_size"],
            resample=PILImageResampling.BICUBIC,
        )

    def _below(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}

    # image

    def pixels(self, image: Image.Image) -> Tensor:
        """(parts, 3, side, side): the tiles row by row, then the whole image."""
        parts = [image]
        if self.ratio > 1:
            width, height = image.width // self.ratio, image.height // self.ratio
            parts = [
                image.crop((col * width, row * height, (col + 1) * width, (row + 1) * height))
                for row in range(self.ratio)
                for col in range(self.ratio)
            ] + [image]
        return torch.cat([self.processor(part, return_tensors="pt")["pixel_values"] for part in parts])

    def features(self, pixels: Tensor) -> Tensor:
        """(parts, patches, dim): before the last layer, without the class token."""
        hidden: Tensor = self.clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        return hidden[:, 1:]

    def raster(self, tiles: Tensor) -> Tensor:
        """Features of tiles (tiles, patches, dim) as one map, row by row: each patch copied by itself."""
        grid = math.isqrt(tiles.shape[1])
        whole = torch.zeros(self.ratio * grid, self.ratio * grid, tiles.shape[2])
        for index, tile in enumerate(tiles):
            for patch, value in enumerate(tile):
                whole[index // self.ratio * grid + patch // grid, index % self.ratio * grid + patch % grid] = value
        return whole.reshape(-1, tiles.shape[2])

    def compress(self, patches: Tensor) -> Tensor:
        """(patches, dim) to (queries, dim)."""
        parts = self._below("model.compressor.")
        dim = patches.shape[1]
        table, grid = parts["pos_embed"], math.isqrt(len(patches))
        keys = table.reshape(1, self.side, self.side, dim).permute(0, 3, 1, 2)
        keys = functional.interpolate(keys, size=(grid, grid), mode="bicubic", align_corners=False)
        keys = keys.permute(0, 2, 3, 1).reshape(-1, dim)
        values = functional.layer_norm(patches, (dim,), parts["ln_kv.weight"], parts["ln_kv.bias"], 1e-5)
        queries = functional.layer_norm(parts["query"], (dim,), parts["ln_q.weight"], parts["ln_q.bias"], 1e-5) + table
        attended, _ = self.attention(queries[None], (values + keys)[None], values[None])
        result: Tensor = attended[0]
        return result

    def project(self, features: Tensor) -> Tensor:
        parts = self._below("model.mm_projector.")
        inner = functional.gelu(functional.linear(features, parts["0.weight"], parts["0.bias"]))
        return functional.linear(inner, parts["2.weight"], parts["2.bias"])

    def vision(self, features: Tensor) -> Tensor:
        """All that an image contributes to fusion before it: projected patches, then compressed tokens."""
        if self.ratio == 1:
            return self.project(torch.cat((features[0], self.compress(features[0]))))
        raster = self.raster(features[:-1])
        return self.project(torch.cat((raster, features[-1], self.compress(raster))))

    # text

    def embed(self, ids: Sequence[int]) -> Tensor:
        return self.tensors["model.embed_tokens.weight"][torch.tensor(ids).clamp(min=0)]

    def fuse(self, vision: Tensor, ids: Sequence[int]) -> Parts:
        """One image's vision tokens and a whole prompt through the layers before the decoder."""
        words = self.embed(ids)
        x = torch.cat((vision, words))[None]
        valid = torch.cat((torch.ones(len(vision), dtype=torch.bool), torch.tensor(ids) > 0))
        positions = (valid.long().cumsum(0) - 1).masked_fill(~valid, 1)[None]
        seen = torch.ones(len(valid), len(valid), dtype=torch.bool).tril() & valid[None]
        mask = torch.zeros(len(valid), len(valid)).masked_fill(~seen, MASKED)[None, None]
        angles = self.rotary(x, positions)
        for layer in self.prefusion:
            out = layer(x, attention_mask=mask, position_ids=positions, position_embeddings=angles)
            x = out[0] if isinstance(out, tuple) else out
        fused = x[0, len(vision) :]
        keep = torch.tensor(ids)[:, None] > 0
        return Parts(compressed=x[0, len(vision) - self.side**2 : len(vision)], words=torch.where(keep, fused, words))

    def inputs(self, frames: Sequence[Tensor], ids: Sequence[int]) -> Tensor:
        """The decoder's embeddings (tokens, dim) for frames' pixels (parts, 3, side, side) and a prompt."""
        if not frames:
            return self.embed(ids)
        parts = [self.fuse(self.vision(self.features(pixels)), ids) for pixels in frames]
        words = torch.stack([part.words for part in parts]).mean(dim=0)
        place = list(ids).index(PLACEHOLDER)
        return torch.cat((words[:place], *(part.compressed for part in parts), words[place + 1 :]))

    def logits(self, embeddings: Tensor) -> Tensor:
        """Next-token logits (vocab,) after embeddings (tokens, dim)."""
        result: Tensor = self.llama(inputs_embeds=embeddings[None]).logits[0, -1]
        return result

    def greedy(self, embeddings: Tensor, max_tokens: int, stops: Sequence[int]) -> list[int]:
        """The answer's ids without the end, everything recomputed for each."""
        ids: list[int] = []
        while len(ids) < max_tokens:
            token = int(self.logits(torch.cat((embeddings, self.embed(ids))) if ids else embeddings).argmax())
            if token in stops:
                break
            ids.append(token)
        return ids


def _load(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a module its tensors; it must find all, others are for other modules."""
    missing, _ = module.load_state_dict(dict(tensors), strict=False)
    assert not [name for name in missing if "position_ids" not in name and "inv_freq" not in name], missing
    return module.eval()
