"""The original model in float32 torch, for comparison: graph by graph, and all of its text in one pass.

Parameters are read from the checkpoint layer by layer and never all held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from edgevlm_export.families.family import GraphRequest, Recipe
from edgevlm_export.streaming import streamed
from edgevlm_runtime.engines import Array, FloatArray, Shared
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import Role

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A prompt after the image, and the ids of its answer with the one that ended it."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ReferenceSteps:
    """What the original says at every position from which an id of an answer is chosen, sample after sample.

    logits (positions, vocab) and hidden (positions, dim) before the last norm, both float32.
    """

    logits: FloatArray
    hidden: FloatArray


class Reference:
    """A recipe's module in float32."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._requests = {request.role: request for request in recipe.graphs}

    def open(self, role: Role) -> TorchGraph:
        """One role in torch, in the place of a graph."""
        return TorchGraph(self._recipe, self._requests[role])

    def embed(self, token_ids: Sequence[int]) -> FloatArray:
        """Token ids to embeddings (tokens, dim)."""
        table = self._recipe.weights.stored(family_part(self._recipe.embedding, "embedding"))
        embeddings: FloatArray = table[list(token_ids)].float().numpy()
        return embeddings

    def follow(self, prefix: FloatArray, samples: Sequence[Sample]) -> ReferenceSteps:
        """Every step of all samples after one prefix (tokens, dim), all tokens of which see each other.

        The samples stand behind the prefix one after the other, each at the same positions and hidden from the
        others: one pass, in which every parameter is read once.
        """
        return self.follow_each((prefix,), samples)

    def follow_each(self, prefixes: Sequence[FloatArray], samples: Sequence[Sample]) -> ReferenceSteps:
        """`follow` after several prefixes (tokens, dim), which do not see each other, still in one pass."""
        build = family_part(self._recipe.decoder, "decoder")
        words = [self.embed((*s.prompt, *s.answer[:-1])) for s in samples]
        embeddings = np.concatenate([part for prefix in prefixes for part in (prefix, *words)])
        positions, mask, rows = _join([pack(len(prefix), samples) for prefix in prefixes])
        module = build(self._recipe.build())
        with streamed(module, self._recipe.weights, unused=(self._recipe.embedding or "",)):
            logits, hidden = module(torch.from_numpy(embeddings)[None], positions, mask, rows)
        return ReferenceSteps(logits=logits.numpy(), hidden=hidden.numpy())


class TorchGraph:
    """A role of the original, run as if it were a graph."""

    def __init__(self, recipe: Recipe, request: GraphRequest) -> None:
        self.request = request
        self._recipe = recipe

    def run(self, inputs: Mapping[str, Array], shared: tuple[Shared, ...] = ()) -> dict[str, Array]:
        """See `Graph.run`; there are no shared buffers in torch."""
        assert not shared
        module = self.request.build(self._recipe.build())
        with streamed(module, self._recipe.weights):
            outputs = module(*(torch.from_numpy(inputs[spec.name]) for spec in self.request.inputs))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {spec.name: tensor.numpy() for spec, tensor in zip(self.request.outputs, tensors, strict=True)}


def pack(n_prefix: int, samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (tokens,), boolean mask (tokens, tokens) and rows to read of a prefix and samples in one sequence."""
    lengths = [len(sample.prompt) + len(sample.answer) - 1 for sample in samples]
    n_tokens = n_prefix + sum(lengths)
    mask = torch.zeros(n_tokens, n_tokens, dtype=torch.bool)
    mask[:, :n_prefix] = True
    positions, rows = [torch.arange(n_prefix)], []
    start = n_prefix
    for sample, length in zip(samples, lengths, strict=True):
        end = start + length
        mask[start:end, start:end] = torch.ones(length, length, dtype=torch.bool).tril()
        positions.append(torch.arange(n_prefix, n_prefix + length))
        rows.append(torch.arange(end - len(sample.answer), end))
        start = end
    return torch.cat(positions), mask, torch.cat(rows)


def _join(packs: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Several of `pack` as one sequence, hidden from each other."""
    positions, masks, rows = zip(*packs, strict=True)
    starts = accumulate((len(part) for part in positions[:-1]), initial=0)
    moved = [part + start for part, start in zip(rows, starts, strict=True)]
    return torch.cat(positions), torch.block_diag(*masks), torch.cat(moved)


def family_part(part: _T | None, name: str) -> _T:
    """A part of a recipe that the original can not be run without.

    Raises:
        ExportError: the family has none.
    """
    if part is None:
        raise ExportError(f"the family has no {name}, without which the original can not be run for comparison")
    return part
