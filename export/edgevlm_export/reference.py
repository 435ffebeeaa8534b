"""The original model in float32 torch, for comparison: graph by graph, and all of its text in one pass.

Parameters are read from the checkpoint layer by layer and never all held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from edgevlm_export.families.family import GraphRequest, Recipe
from edgevlm_export.streaming import streamed
from edgevlm_runtime.engines import Array, FloatArray, SharedBuffers
from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.manifest import FusionSpec, Role
from edgevlm_runtime.prompts import before_image

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


@dataclass(frozen=True, kw_only=True)
class Seen:
    """An image as the decoder is given it: its prefix, and prompts about it, each float32 (tokens, dim)."""

    prefix: FloatArray
    prompts: tuple[FloatArray, ...]


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

    def see(self, images: Sequence[FloatArray], prompts: Sequence[Sequence[int]]) -> list[Seen]:
        """What the decoder is given of each image, from its tokens (tokens, dim), and of each prompt about it."""
        before = before_image(family_part(self._recipe.parts.prompt, "prompt"))
        if self._recipe.parts.fusion is not None:
            return self._fuse(images, (before, *prompts), self._recipe.parts.fusion)
        start, words = self.embed(before), tuple(self.embed(ids) for ids in prompts)
        return [Seen(prefix=np.concatenate((start, image)), prompts=words) for image in images]

    def follow(self, image: FloatArray, samples: Sequence[Sample]) -> ReferenceSteps:
        """Every step of all samples about an image of tokens (tokens, dim).

        The samples stand behind the image one after the other, each at the same positions and hidden from the
        others: one pass, in which every parameter is read once.
        """
        return self.follow_each((image,), samples)

    def follow_each(self, images: Sequence[FloatArray], samples: Sequence[Sample]) -> ReferenceSteps:
        """`follow` about several images (tokens, dim), which do not see each other, still in one pass."""
        build = family_part(self._recipe.decoder, "decoder")
        causal = family_part(self._recipe.parts.prompt, "prompt").image_attention == "causal"
        answers = [self.embed(sample.answer[:-1]) for sample in samples]
        parts, packs = [], []
        for seen in self.see(images, [sample.prompt for sample in samples]):
            texts = [np.concatenate(text) for text in zip(seen.prompts, answers, strict=True)]
            parts += [seen.prefix, *texts]
            packs.append(pack(len(seen.prefix), list(map(len, texts)), causal=causal))
        packed = _join(packs)
        asked = [sample for _ in images for sample in samples]
        rows = [torch.arange(end - len(each.answer), end) for end, each in zip(packed.ends, asked, strict=True)]
        module = build(self._recipe.build())
        with streamed(module, self._recipe.weights, unused=(self._recipe.embedding or "",)):
            embeddings = torch.from_numpy(np.concatenate(parts))[None]
            logits, hidden = module(embeddings, packed.positions, packed.mask, torch.cat(rows))
        return ReferenceSteps(logits=logits.numpy(), hidden=hidden.numpy())

    def _fuse(self, images: Sequence[FloatArray], texts: Sequence[Sequence[int]], spec: FusionSpec) -> list[Seen]:
        """`see`, the first of the texts being what stands before the image, in one pass over all images."""
        words = [self.embed([token for token in ids if token not in spec.raw_ids]) for ids in texts]
        lengths = list(map(len, words))
        packed = _join([pack(len(image) + lengths[0], lengths[1:], causal=True) for image in images])
        embeddings = torch.from_numpy(np.concatenate([part for image in images for part in (image, *words)]))
        module = family_part(self._recipe.fuser, "fuser")(self._recipe.build())
        with streamed(module, self._recipe.weights):
            fused = module(embeddings[None], packed.positions, packed.mask)[0].numpy()
        ends = np.cumsum([length for image in images for length in (len(image), *lengths)])
        parts = iter(np.split(fused, ends[:-1]))
        seen = []
        for image in parts:
            before, *prompts = (self._restore(ids, next(parts), spec) for ids in texts)
            seen.append(Seen(prefix=np.concatenate((before, image[-spec.n_compressed :])), prompts=tuple(prompts)))
        return seen

    def _restore(self, ids: Sequence[int], fused: FloatArray, spec: FusionSpec) -> FloatArray:
        """The embeddings (tokens, dim) of ids, those that went through fusion replaced by what came out."""
        embeddings = self.embed(ids)
        embeddings[[token not in spec.raw_ids for token in ids]] = fused
        return embeddings


class TorchGraph:
    """A role of the original, run as if it were a graph."""

    def __init__(self, recipe: Recipe, request: GraphRequest) -> None:
        self.request = request
        self._recipe = recipe

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        """See `Graph.run`; there are no shared buffers in torch."""
        assert shared is None
        module = self.request.build(self._recipe.build())
        with streamed(module, self._recipe.weights):
            outputs = module(*(torch.from_numpy(inputs[spec.name]) for spec in self.request.inputs))
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        return {spec.name: tensor.numpy() for spec, tensor in zip(self.request.outputs, tensors, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Pack:
    """Several texts in one sequence: positions (tokens,), boolean mask (tokens, tokens), and where each text ends."""

    positions: Tensor
    mask: Tensor
    ends: tuple[int, ...]


def pack(n_prefix: int, lengths: Sequence[int], *, causal: bool) -> Pack:
    """A prefix and texts behind it, which do not see each other; the prefix's tokens all do unless `causal`."""
    ends = tuple(accumulate(lengths, initial=n_prefix))
    n_tokens = ends[-1]
    mask = torch.zeros(n_tokens, n_tokens, dtype=torch.bool)
    mask[:, :n_prefix] = True
    if causal:
        mask[:n_prefix, :n_prefix].tril_()
    positions = [torch.arange(n_prefix)]
    for start, end in pairwise(ends):
        mask[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        positions.append(torch.arange(n_prefix, n_prefix + end - start))
    return Pack(positions=torch.cat(positions), mask=mask, ends=ends[1:])


def _join(packs: Sequence[Pack]) -> Pack:
    """Several of `pack` as one sequence, hidden from each other."""
    starts = accumulate((len(part.positions) for part in packs[:-1]), initial=0)
    return Pack(
        positions=torch.cat([part.positions for part in packs]),
        mask=torch.block_diag(*(part.mask for part in packs)),
        ends=tuple(start + end for start, part in zip(starts, packs, strict=True) for end in part.ends),
    )


def family_part(part: _T | None, name: str) -> _T:
    """A part of a recipe that the original can not be run without.

    Raises:
        ExportError: the family has none.
    """
    if part is None:
        raise ExportError(f"the family has no {name}, without which the original can not be run for comparison")
    return part
