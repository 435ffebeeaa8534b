"""The reference's flows, written again without any cache: the whole sequence is computed anew for every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from edgevlm_runtime.engines import Array
from tests.runtime.fake_bundle import ANSWER, COORDINATE, EOS, GROUND, GROUND_END, SIZE
from tests.runtime.fake_engine import BINS, SmallGraph, TinyDecoder


def run_graph(role: str, name: str, x: Array) -> Array:
    """The only output of one small graph."""
    (output,) = SmallGraph(role).run({name: np.asarray(x, np.float32)}).values()
    return output


def encode_coordinate(value: float) -> Array:
    return run_graph("region_coordinate_encoder", "coordinates", np.array([[value]]))


def encode_size(width: float, height: float) -> Array:
    return run_graph("region_size_encoder", "sizes", np.array([[width, height]]))


@dataclass
class Recomputed:
    """A sequence that starts with an image or, without one, with nothing."""

    decoder: TinyDecoder
    image: Array | None
    rows: list[Array] = field(default_factory=list)  # each (n, dim)
    n_prefix: int = 0

    def __post_init__(self) -> None:
        if self.image is not None:
            self.rows = [self.decoder.table[[EOS]], self.image]
            self.n_prefix = 1 + len(self.image)

    def append(self, rows: Array) -> tuple[Array, Array]:
        """Logits (vocab,) and hidden (1, dim) after more rows (n, dim)."""
        self.rows.append(rows)
        logits, hidden = self.decoder.full(np.concatenate(self.rows), self.n_prefix)
        return logits[-1], hidden[-1:]

    def append_ids(self, ids: Sequence[int]) -> tuple[Array, Array]:
        return self.append(self.decoder.table[list(ids)])

    def coordinate(self, hidden: Array) -> float:
        return float(run_graph("region_coordinate_decoder", "hidden", hidden)[0].argmax()) / BINS

    def size(self, hidden: Array) -> tuple[float, float]:
        width, height = run_graph("region_size_decoder", "hidden", hidden)[0].argmax(axis=-1)
        return 2.0 ** (width / (BINS - 1) * 10 - 10), 2.0 ** (height / (BINS - 1) * 10 - 10)

    def answer(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Greedy ids of an answer."""
        logits, _ = self.append_ids(prompt)
        ids: list[int] = []
        while (token := int(logits.argmax())) != EOS and len(ids) < max_tokens:
            ids.append(token)
            logits, _ = self.append_ids([token])
            logits[ANSWER] = -np.inf
        return ids

    def reason(self, prompt: Sequence[int], max_tokens: int) -> tuple[list[list[int]], list[list[float]]]:
        """Chunks of token ids and of coordinates."""
        logits, hidden = self.append_ids(prompt)
        texts: list[list[int]] = [[]]
        coordinates: list[list[float]] = [[]]
        n = 0
        while (token := int(logits.argmax())) != ANSWER and n < max_tokens:
            if token in (GROUND, GROUND_END):
                texts.append([])
                coordinates.append([])
            texts[-1].append(token)
            if token == COORDINATE:
                coordinates[-1].append(self.coordinate(hidden))
                logits, hidden = self.append(encode_coordinate(coordinates[-1][-1]))
            else:
                logits, hidden = self.append_ids([token])
            logits[[EOS, SIZE]] = -np.inf
            n += 1
        return texts, coordinates

    def objects(self, prompt: Sequence[int], limit: int, *, sized: bool) -> list[tuple[float, ...]]:
        """Centers, with sizes or without."""
        logits, hidden = self.append_ids(prompt)
        found: list[tuple[float, ...]] = []
        while int(logits.argmax()) != EOS and len(found) < limit:
            x = self.coordinate(hidden)
            _, hidden = self.append(encode_coordinate(x))
            y = self.coordinate(hidden)
            logits, hidden = self.append(encode_coordinate(y))
            if sized:
                width, height = self.size(hidden)
                logits, hidden = self.append(encode_size(width, height))
                found.append((x, y, width, height))
            else:
                found.append((x, y))
        return found
