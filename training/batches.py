"""Many exchanges about one image packed into one sequence behind the image's prefix.

Each exchange sees the prefix and its own earlier positions only, and its positions start right behind the prefix, so
that it is computed as if it were alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Any, Protocol

import numpy
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from training.dialogue import Box, Exchange, exchange
from training.model import N_PREFIX
from training.scenes import Scene
from training.tokenizer import COORD, EOS, prompt_ids

IGNORED = -1
_PADDING_SEGMENT = -1
_JITTER = 0.006
_COLUMNS = ("ids", "values", "positions", "segments", "tokens", "regions", "weights")


@dataclass(kw_only=True)
class Layout:
    """One exchange laid out: what goes in at each position and what should come out there."""

    ids: list[int]
    """Token ids; IGNORED where a coordinate (`values` has one number) or a size (two) goes in."""
    values: list[tuple[float, ...]]
    tokens: list[int]
    """Next token to predict, or IGNORED."""
    regions: list[tuple[float, ...]]
    """Coordinate (one number) or size (two) to predict, or nothing."""
    weight: float


class LaysOut(Protocol):
    """What can lay exchanges out."""

    def layout(self, said: Exchange) -> Layout:
        """The sequence of an exchange."""
        ...


class Layouts:
    """Exchanges to sequences, remembering what was tokenized before."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._prompt = lru_cache(maxsize=50_000)(lambda task, prompt: prompt_ids(tokenizer, task, prompt))
        self._text = lru_cache(maxsize=50_000)(lambda text: tokenizer.encode(text, add_special_tokens=False).ids)

    def layout(self, said: Exchange) -> Layout:
        """The sequence of an exchange."""
        prompt: list[int] = self._prompt(said.task, said.prompt)
        if said.task in ("detect", "point"):
            return _grounded(prompt, said.boxes, with_size=said.task == "detect")
        return spoken(prompt, self._text(said.answer), EOS)


def spoken(prompt: list[int], answer: list[int], end: int) -> Layout:
    """The sequence of an answer in words, which the id `end` ends."""
    ids = prompt + answer
    return Layout(
        ids=ids,
        values=[()] * len(ids),
        tokens=[IGNORED] * (len(prompt) - 1) + answer + [end],
        regions=[()] * len(ids),
        weight=1 / math.sqrt(len(answer) + 1),
    )


def _grounded(prompt: list[int], boxes: Sequence[Box], *, with_size: bool) -> Layout:
    """After the prompt: x, y and, when detecting, the size of each object; "another object" is the token COORD."""
    values: list[tuple[float, ...]] = []
    for x0, y0, x1, y1 in boxes:
        values += [((x0 + x1) / 2,), ((y0 + y1) / 2,)]
        if with_size:
            values.append((x1 - x0, y1 - y0))
    per_object = 3 if with_size else 2
    follow = [COORD if k % per_object == 0 else IGNORED for k in range(len(values))] + [EOS]
    return Layout(
        ids=prompt + [IGNORED] * len(values),
        values=[()] * len(prompt) + values,
        tokens=[IGNORED] * (len(prompt) - 1) + follow,
        regions=[()] * (len(prompt) - 1) + values + [()],
        weight=1.0,
    )


@dataclass(kw_only=True)
class Packed:
    """Sequences of a batch of images, each (images, length) unless said otherwise."""

    ids: Tensor
    values: Tensor
    """(images, length, 2); NaN where nothing goes in, the second is NaN for coordinates."""
    positions: Tensor
    segments: Tensor
    tokens: Tensor
    regions: Tensor
    """(images, length, 2), NaN as in `values`."""
    weights: Tensor
    exchanges: list[list[Exchange]]
    """Those that fitted, numbered by `segments`."""

    def to(self, device: torch.device) -> Packed:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in _COLUMNS}
        return Packed(exchanges=self.exchanges, **moved)

    def mask(self) -> Tensor:
        """(images, 1, prefix + length, prefix + length): which key each query may look at."""
        images, length = self.ids.shape
        total = N_PREFIX + length
        own = (self.segments[:, :, None] == self.segments[:, None, :]).tril()
        mask = torch.zeros(images, 1, total, total, dtype=torch.bool)
        mask[..., :N_PREFIX] = True
        mask[:, 0, N_PREFIX:, N_PREFIX:] = own
        return mask

    def all_positions(self) -> Tensor:
        """(images, prefix + length)."""
        prefix = torch.arange(N_PREFIX).expand(len(self.ids), -1)
        return torch.cat((prefix, self.positions), dim=1)


def pack(layouts: LaysOut, exchanges: Sequence[Sequence[Exchange]], length: int) -> Packed:
    """Pack the exchanges of each image; those that do not fit are left out."""
    shape = (len(exchanges), length)
    columns = {
        "ids": numpy.zeros(shape, numpy.int64),
        "positions": numpy.full(shape, N_PREFIX),
        "segments": numpy.full(shape, _PADDING_SEGMENT),
        "tokens": numpy.full(shape, IGNORED),
        "weights": numpy.zeros(shape, numpy.float32),
        "values": numpy.full((*shape, 2), numpy.nan, numpy.float32),
        "regions": numpy.full((*shape, 2), numpy.nan, numpy.float32),
    }
    fitted: list[list[Exchange]] = []
    for image, said in enumerate(exchanges):
        fitted.append([])
        used = 0
        for one in said:
            laid = layouts.layout(one)
            if used + len(laid.ids) > length:
                continue
            _write(columns, (image, used), laid, len(fitted[-1]))
            used += len(laid.ids)
            fitted[-1].append(one)
    return Packed(exchanges=fitted, **{name: torch.from_numpy(column) for name, column in columns.items()})


def _write(columns: dict[str, NDArray[Any]], place: tuple[int, int], laid: Layout, segment: int) -> None:
    """Copy a layout into the row of an image, from a column on."""
    image, first = place
    span = slice(first, first + len(laid.ids))
    columns["ids"][image, span] = laid.ids
    columns["positions"][image, span] = numpy.arange(N_PREFIX, N_PREFIX + len(laid.ids))
    columns["segments"][image, span] = segment
    columns["tokens"][image, span] = laid.tokens
    columns["weights"][image, span] = laid.weight
    for name, pairs in (("values", laid.values), ("regions", laid.regions)):
        for offset, numbers in enumerate(pairs):
            columns[name][image, first + offset, : len(numbers)] = numbers


def random_batch(
    layouts: LaysOut,
    scenes: Sequence[Scene],
    rng: Random,
    length: int,
    choose: Callable[[Scene, Random], Exchange] = exchange,
) -> Packed:
    """Random exchanges about each scene, as many as fit."""
    exchanges = []
    for scene in scenes:
        said: list[Exchange] = []
        used = 0
        while used < length - 8 and len(said) < 40:
            said.append(choose(scene, rng))
            used += len(layouts.layout(said[-1]).ids)
        exchanges.append(said)
    packed = pack(layouts, exchanges, length)
    packed.values += _JITTER * torch.randn(packed.values.shape)
    return packed
