"""Packed exchanges as the shrunken models read them: behind a causal prefix, with prompts told apart from answers."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from edgevlm_runtime.manifest import PromptSpec
from edgevlm_runtime.prompts import Prompts
from edgevlm_runtime.tokenizer import TextTokenizer
from training.batches import IGNORED, Layout, Packed, spoken
from training.dialogue import Exchange
from training.model import N_PREFIX


class BundleLayouts:
    """Exchanges to sequences with the very prompts that a bundle asks with, remembering what was tokenized before."""

    def __init__(self, spec: PromptSpec, tokenizer: TextTokenizer) -> None:
        self.spec = spec
        prompts = Prompts(spec, tokenizer)

        def ask(task: str, prompt: str) -> list[int]:
            return list((prompts.caption(prompt) if task == "caption" else prompts.query(prompt)).ids)

        self._prompt = lru_cache(maxsize=50_000)(ask)
        self._text = lru_cache(maxsize=50_000)(lambda text: list(tokenizer.encode(text)))

    def layout(self, said: Exchange) -> Layout:
        """The sequence of a caption or a question."""
        return spoken(self._prompt(said.task, said.prompt), self._text(said.answer), self.spec.eos_id)


def is_prompt(packed: Packed) -> Tensor:
    """(images, length): whether a token is of a prompt; what fills a row up counts as one."""
    before = torch.nn.functional.pad(packed.tokens[:, :-1], (1, 0), value=IGNORED)
    return (packed.positions == N_PREFIX) | (before == IGNORED)


def causal_mask(packed: Packed, n_prefix: int) -> Tensor:
    """(images, 1, prefix + length, prefix + length): every token sees the prefix up to itself, and its own exchange."""
    images, length = packed.ids.shape
    total = n_prefix + length
    mask = torch.ones(total, total, dtype=torch.bool).tril().repeat(images, 1, 1, 1)
    mask[:, 0, n_prefix:, n_prefix:] &= packed.segments[:, :, None] == packed.segments[:, None, :]
    return mask


def causal_positions(packed: Packed, n_prefix: int) -> Tensor:
    """(images, prefix + length): every exchange starts right behind the prefix."""
    prefix = torch.arange(n_prefix).expand(len(packed.ids), -1)
    return torch.cat((prefix, packed.positions - N_PREFIX + n_prefix), dim=1)
