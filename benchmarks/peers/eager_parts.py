"""What the models in eager PyTorch have in common: a decoder with its cache, and blocks that share weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_STD = 0.02


class EagerModel(ABC):
    """Random weights of one type, a decoder with its cache, and `n_before` words before an image."""

    def __init__(self, decoder: Any, dtype: torch.dtype, n_before: int) -> None:
        from transformers import DynamicCache

        self.dtype = dtype
        self._n_before = n_before
        self._decoder = decoder.to(dtype).eval()
        self._cache: Any = DynamicCache()

    @abstractmethod
    def see(self, pixels: Tensor) -> Tensor:
        """An image (1, 3, side, side), values from -1 to 1, to tokens (1, tokens, dim)."""

    def read_image(self, tokens: Tensor) -> None:
        """Read the words before an image and what `see` gave of it, from nothing."""
        self._step(inputs_embeds=torch.cat([self._words_before(), tokens], 1))

    def ask(self, ids: Tensor) -> Tensor:
        """`read` a question about the image."""
        return self.read(ids)

    def read(self, ids: Tensor) -> Tensor:
        """The likeliest token (1, 1) after these (1, tokens)."""
        return self._step(input_ids=ids)

    @property
    def length(self) -> int:
        """Positions of the cache."""
        return int(self._cache.get_seq_length())

    def forget(self, n_kept: int) -> None:
        """Keep so many positions of the cache."""
        self._cache.crop(n_kept)

    def _words_before(self) -> Tensor:
        return self._embed(torch.zeros(1, self._n_before, dtype=torch.long))

    def _embed(self, ids: Tensor) -> Tensor:
        embeddings: Tensor = self._decoder.get_input_embeddings()(ids)
        return embeddings

    def _step(self, **inputs: Tensor) -> Tensor:
        logits = self._decoder(**inputs, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
        token: Tensor = logits.argmax(-1)
        return token


def share_first(layers: Iterable[nn.Module]) -> None:
    """Give all blocks the first one's weights; each keeps its place, by which the cache knows it."""
    first, *others = layers
    for layer in others:
        layer.load_state_dict(first.state_dict(keep_vars=True), assign=True)


def share_decoder(base: Any) -> None:
    """Random weights for transformers' decoder without its head, made on the meta device: those of one block for all.

    The rotary table is computed, it is no weight.
    """
    share_first(base.layers)
    base.rotary_emb = type(base.rotary_emb)(base.config)
    fill(base)


def fill(model: nn.Module) -> None:
    """Random weights in the place of meta tensors; shared ones stay shared."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and weight.is_meta:
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(torch.randn(weight.shape).mul_(_STD), requires_grad=False)
                module._parameters[name] = made[id(weight)]
