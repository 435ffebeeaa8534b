"""Greedy answers of a float checkpoint in torch, with the reference's prompts and its loop over regions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from edgevlm_export.modules.layers import Rotary, merge_heads, split_heads
from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, RegionConfig, TextConfig, VisionConfig
from training.answering import prefix
from training.cache import crop_pixels
from training.model import normalized
from training.tokenizer import EOS, prompt_ids

MAX_OBJECTS = 50


@dataclass(frozen=True, kw_only=True)
class Answer:
    text: str


@dataclass(frozen=True, kw_only=True)
class Region:
    """A detected object, in fractions of the picture."""

    x_min: float
    y_min: float
    x_max: float
    y_max: float


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    y: float


@dataclass(frozen=True)
class Encoded:
    """Keys and values of [bos, image], by layer, each (1, heads, 1 + patches, head_dim)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass
class _Sequence:
    """What the decoder has read so far."""

    rotary: Rotary
    n_heads: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def attend(self, layer: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """Attention of new tokens to what came before in this layer, and to themselves (all, if they come first)."""

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            query, key, value = (split_heads(x, self.n_heads) for x in (q, k, v))
            n_new, n_old = query.shape[2], self.keys[layer].shape[2] if layer < len(self.keys) else 0
            positions = torch.arange(n_old, n_old + n_new)
            query, key = self.rotary(query, positions), self.rotary(key, positions)
            mask = None
            if n_old:
                key, value = torch.cat((self.keys[layer], key), 2), torch.cat((self.values[layer], value), 2)
                mask = torch.ones(n_new, n_old + n_new, dtype=torch.bool).tril(n_old)
                self.keys[layer], self.values[layer] = key, value
            else:
                self.keys.append(key)
                self.values.append(value)
            return merge_heads(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))

        return attend


class TorchAnswerer:
    """Answers questions about pictures with the torch modules."""

    def __init__(self, model: Moondream2, tokenizer: Tokenizer, max_tokens: int = 128) -> None:
        self.model, self.tokenizer, self.max_tokens = model.eval(), tokenizer, max_tokens

    @torch.no_grad()
    def encode(self, image: Image.Image) -> Encoded:
        """Read the picture once, to ask many things."""
        pixels = torch.from_numpy(crop_pixels(image, self.model.config.vision.crop_size).copy())
        features = self.model.vision.encode(normalized(pixels[None]))
        sequence = self._sequence()
        self._read(sequence, prefix(self.model, features))
        return Encoded(tuple(sequence.keys), tuple(sequence.values))

    def caption(self, image: Encoded, length: str) -> Answer:
        return self._answer(image, prompt_ids(self.tokenizer, "caption", length))

    def query(self, image: Encoded, question: str) -> Answer:
        return self._answer(image, prompt_ids(self.tokenizer, "query", question))

    @torch.no_grad()
    def detect(self, image: Encoded, name: str) -> list[Region]:
        """Boxes of all objects that the name means."""
        return [
            Region(x_min=x - width / 2, y_min=y - height / 2, x_max=x + width / 2, y_max=y + height / 2)
            for x, y, width, height in self._regions(image, "detect", name)
        ]

    @torch.no_grad()
    def point(self, image: Encoded, name: str) -> list[Point]:
        """Centers of all objects that the name means."""
        return [Point(x=x, y=y) for x, y in self._regions(image, "point", name)]

    @torch.no_grad()
    def _answer(self, image: Encoded, ids: list[int]) -> Answer:
        sequence = self._sequence(image)
        hidden = self._read(sequence, self.model.text.embed(torch.tensor([ids])))
        said: list[int] = []
        while len(said) < self.max_tokens and (token := int(self.model.text.logits(hidden).argmax())) != EOS:
            said.append(token)
            hidden = self._read(sequence, self.model.text.embed(torch.tensor([[token]])))
        return Answer(text=self.tokenizer.decode(said))

    def _regions(self, image: Encoded, task: str, name: str) -> list[tuple[float, ...]]:
        """The region loop: after the prompt and after each object, anything but eos starts another object."""
        region = self.model.region
        sequence = self._sequence(image)
        ids = torch.tensor([prompt_ids(self.tokenizer, task, name)])
        hidden = self._read(sequence, self.model.text.embed(ids))
        found: list[tuple[float, ...]] = []
        while len(found) < MAX_OBJECTS and int(self.model.text.logits(hidden).argmax()) != EOS:
            numbers: list[float] = []
            for _ in ("x", "y"):
                logits = region.decode_coordinate(hidden)
                numbers.append(float(logits.argmax()) / logits.shape[-1])
                hidden = self._read(sequence, region.encode_coordinate(torch.tensor([[numbers[-1]]]))[None])
            if task == "detect":
                logits = region.decode_size(hidden)
                size = 2 ** (logits.argmax(-1)[0] / (logits.shape[-1] - 1) * 10 - 10)
                numbers += size.tolist()
                hidden = self._read(sequence, region.encode_size(size[None])[None])
            found.append(tuple(numbers))
        return found

    def _sequence(self, image: Encoded | None = None) -> _Sequence:
        text = self.model.text
        sequence = _Sequence(text.rotary, text.config.n_heads)
        if image is not None:
            sequence.keys, sequence.values = list(image.keys), list(image.values)
        return sequence

    def _read(self, sequence: _Sequence, embeddings: Tensor) -> Tensor:
        """Append embeddings (1, tokens, dim); the hidden state (1, dim) of the last."""
        for layer, block in enumerate(self.model.text.blocks):
            embeddings = block(embeddings, sequence.attend(layer))
        return embeddings[:, -1]


def load_answerer(folder: Path) -> TorchAnswerer:
    """The checkpoint of a folder: config.json, model.safetensors, tokenizer.json."""
    sizes = json.loads((folder / "config.json").read_text())["config"]
    config = Moondream2Config(
        text=TextConfig(**sizes["text"]), vision=VisionConfig(**sizes["vision"]), region=RegionConfig(**sizes["region"])
    )
    model = Moondream2(config)
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()})
    return TorchAnswerer(model, Tokenizer.from_file(str(folder / "tokenizer.json")))
