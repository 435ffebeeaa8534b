"""TinyGPT-V put together from transformers' own classes, and read from the published files by their own keys.

Nothing is merged, folded or reordered here: LoRA's pairs run beside their matrices, the fused projection runs as it
was trained, and position embeddings are resized by transformers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    Blip2QFormerConfig,
    Blip2QFormerModel,
    Blip2VisionConfig,
    Blip2VisionModel,
    PhiConfig,
    PhiForCausalLM,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
State = dict[str, Tensor]


class WithLora(nn.Module):
    """A matrix and what a low-rank pair adds to it, of which `rows` are wanted."""

    def __init__(
        self, matrix: tuple[Tensor, Tensor], pair: tuple[Tensor, Tensor], rows: list[int] | None = None
    ) -> None:
        super().__init__()
        self.weight, self.bias = matrix
        self.down, self.up = pair
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.weight.T + self.bias + 16 / len(self.down) * ((x @ self.down.T) @ self.up.T)
        return y if self.rows is None else y[..., self.rows]


class Rms(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt())


class TinyGptVOracle:
    """A model from a folder of published files."""

    def __init__(self, folder: Path, *, n_vision: int, n_blocks: int, n_heads: int, vision_heads: int) -> None:
        phi: State = {}
        for shard in sorted((folder / "phi-2").glob("*.safetensors")):
            phi |= {key: value.float() for key, value in load_file(shard).items()}
        eva = _load(folder / "eva_vit_g.pth")
        blip2 = _load(folder / "blip2_pretrained_flant5xxl.pth", "model")
        (stage,) = folder.glob("TinyGPT-V_for_Stage*.pth")
        trained = _load(stage, "model")
        self.side = 2 * self._base_side(eva) if "Stage4" in stage.name else self._base_side(eva)
        self.vision = _vision(eva, blip2, n_vision, vision_heads)
        self.qformer = _qformer(blip2, eva["cls_token"].shape[-1])
        self.queries = blip2["query_tokens"]
        self.projections = [
            (trained[f"{name}.weight"], trained[f"{name}.bias"]) for name in ("llama_proj", "llama_proj2")
        ]
        self.phi = _phi(phi, {_plain(key): value for key, value in trained.items()}, n_blocks, n_heads)
        self.tokenizer = Tokenizer.from_file(str(folder / "phi-2" / "tokenizer.json"))

    @staticmethod
    def _base_side(eva: State) -> int:
        grid = round((eva["pos_embed"].shape[1] - 1) ** 0.5)
        return int(grid * eva["patch_embed.proj.weight"].shape[-1])

    def pixels(self, image: Image.Image) -> Tensor:
        """(1, 3, side, side): squeezed into the square, in float64."""
        values = np.asarray(image.convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)) / 255.0
        normed = (values - np.array(MEAN)) / np.array(STD)
        return torch.from_numpy(normed.transpose(2, 0, 1)[None]).float()

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        output = self.vision(pixel_values=pixels, interpolate_pos_encoding=True)
        hidden: Tensor = output.last_hidden_state
        return hidden

    @torch.no_grad()
    def image_tokens(self, features: Tensor) -> Tensor:
        """(tokens, dim) of one image."""
        x = self.qformer(query_embeds=self.queries, encoder_hidden_states=features).last_hidden_state
        for weight, bias in self.projections:
            x = x @ weight.T + bias
        tokens: Tensor = x[0]
        return tokens

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """Of every position of a whole causal sequence (tokens, dim)."""
        logits: Tensor = self.phi(inputs_embeds=embeddings[None]).logits[0]
        return logits

    def embed(self, ids: list[int]) -> Tensor:
        embeddings: Tensor = self.phi.get_input_embeddings().weight.detach()[ids]
        return embeddings

    def prefix(self, image: Image.Image, prompt: str) -> Tensor:
        """Embeddings of a prompt with <ImageHere> in it."""
        before, after = (
            self.tokenizer.encode(part, add_special_tokens=False).ids for part in prompt.split("<ImageHere>")
        )
        tokens = self.image_tokens(self.features(self.pixels(image)))
        return torch.cat((self.embed(before), tokens, self.embed(after)))

    def greedy(self, sequence: Tensor, n_tokens: int, stop_ids: tuple[int, ...]) -> list[int]:
        """Each token from the whole sequence anew."""
        ids: list[int] = []
        while len(ids) < n_tokens:
            token = int(self.logits(torch.cat((sequence, self.embed(ids))))[-1].argmax())
            if token in stop_ids:
                break
            ids.append(token)
        return ids


def _load(file: Path, key: str | None = None) -> State:
    data: dict[str, Any] = torch.load(file, weights_only=True)
    return {name: value.float() for name, value in (data[key] if key else data).items()}


def _plain(key: str) -> str:
    """A trained key as Phi-2 would have it."""
    return key.replace("llama_model.base_model.model.", "").replace(".default", "")


def _vision(eva: State, blip2: State, n_layers: int, n_heads: int) -> Any:
    dim = eva["cls_token"].shape[-1]
    config = Blip2VisionConfig(
        hidden_size=dim,
        intermediate_size=eva["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        image_size=TinyGptVOracle._base_side(eva),
        patch_size=eva["patch_embed.proj.weight"].shape[-1],
    )
    state = {
        "embeddings.class_embedding": eva["cls_token"],
        "embeddings.position_embedding": eva["pos_embed"],
        "embeddings.patch_embedding.weight": eva["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": eva["patch_embed.proj.bias"],
        "post_layernorm.weight": blip2["ln_vision.weight"],
        "post_layernorm.bias": blip2["ln_vision.bias"],
    }
    for i in range(n_layers):
        source, target = f"blocks.{i}", f"encoder.layers.{i}"
        q_bias, v_bias = eva[f"{source}.attn.q_bias"], eva[f"{source}.attn.v_bias"]
        state[f"{target}.self_attn.qkv.weight"] = eva[f"{source}.attn.qkv.weight"]
        state[f"{target}.self_attn.qkv.bias"] = torch.cat((q_bias, torch.zeros(dim), v_bias))
        names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.projection"}
        for ours, theirs in (names | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}).items():
            for leaf in ("weight", "bias"):
                state[f"{target}.{theirs}.{leaf}"] = eva[f"{source}.{ours}.{leaf}"]
    model = Blip2VisionModel(config).eval()
    model.load_state_dict(state, strict=True)
    model.post_layernorm.eps = 1e-5  # BLIP-2 trained it with PyTorch's default, unlike the blocks
    return model


def _qformer(blip2: State, image_dim: int) -> Any:
    prefix = "Qformer.bert.encoder.layer."
    dim = blip2["query_tokens"].shape[-1]
    config = Blip2QFormerConfig(
        hidden_size=dim,
        num_hidden_layers=len({key.removeprefix(prefix).split(".")[0] for key in blip2 if key.startswith(prefix)}),
        num_attention_heads=dim // 64,
        intermediate_size=blip2[f"{prefix}0.intermediate_query.dense.weight"].shape[0],
        encoder_hidden_size=image_dim,
        cross_attention_frequency=2,
    )
    model = Blip2QFormerModel(config).eval()
    state = {}
    for key in model.state_dict():
        source = key.replace("attention.attention.", "attention.self.")
        source = re.sub(r"^layernorm", "embeddings.LayerNorm", source)
        state[key] = blip2[f"Qformer.bert.{source}"]
    model.load_state_dict(state, strict=True)
    return model


def _phi(phi: State, trained: State, n_layers: int, n_heads: int) -> Any:
    vocab, dim = phi["model.embed_tokens.weight"].shape
    config = PhiConfig(
        vocab_size=vocab,
        hidden_size=dim,
        intermediate_size=phi["model.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        partial_rotary_factor=0.4,
        qk_layernorm=True,
    )
    model = PhiForCausalLM(config).eval()
    state = {**phi, **{key: value for key, value in trained.items() if key in model.state_dict()}}
    missing = model.load_state_dict(state, strict=False).missing_keys
    for i, layer in enumerate(model.model.layers):
        _modify(layer.self_attn, phi, trained, f"model.layers.{i}", n_heads)
    assert all(re.search(r"[qkv]_proj|[qk]_layernorm\.bias", key) for key in missing)
    return model


def _modify(attention: Any, phi: State, trained: State, layer: str, n_heads: int) -> None:
    """Put the adapters and the norm of the attention's branch into one of transformers' layers."""
    key = f"{layer}.self_attn"
    head_dim = phi[f"{key}.dense.weight"].shape[0] // n_heads
    fused = _fused(phi, key, "weight", n_heads, head_dim), _fused(phi, key, "bias", n_heads, head_dim)
    for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
        # Rows head by head, in each first the queries', then the keys' and the values'.
        rows = [(3 * head + j) * head_dim + i for head in range(n_heads) for i in range(head_dim)]
        setattr(attention, name, WithLora(fused, _pair(trained, f"{key}.query_key_value"), rows))
    dense = WithLora((phi[f"{key}.dense.weight"], phi[f"{key}.dense.bias"]), _pair(trained, f"{key}.dense"))
    attention.dense = nn.Sequential(dense, Rms(trained[f"{layer}.post_layernorm.weight"]))


def _pair(trained: State, key: str) -> tuple[Tensor, Tensor]:
    return trained[f"{key}.lora_A.weight"], trained[f"{key}.lora_B.weight"]


def _fused(phi: State, key: str, leaf: str, n_heads: int, head_dim: int) -> Tensor:
    if f"{key}.query_key_value.{leaf}" in phi:
        return phi[f"{key}.query_key_value.{leaf}"]
    rows = []
    for head in range(n_heads):
        for name in ("q_proj", "k_proj", "v_proj"):
            rows.append(phi[f"{key}.{name}.{leaf}"][head * head_dim : (head + 1) * head_dim])
    return torch.cat(rows)
