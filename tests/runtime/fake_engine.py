"""Graphs in NumPy with random weights that keep the contract of the real ones, attention by brute force in float64.

`TinyDecoder.full` computes a whole sequence without a cache: what every cached way of getting there must agree with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.engines import Array, Graph, Shared, SharedBuffers
from edgevlm_runtime.manifest import CacheSpec

DIM = 16
N_HEADS = 2
BINS = 64
PATCHES = 9
CACHE = CacheSpec(n_layers=2, n_kv_heads=1, head_dim=8, max_context=64)


def _softmax(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@dataclass
class TinyDecoder:
    """A decoder of two layers with fewer key heads than heads. `script` forces the token after an absolute position."""

    vocab: int
    script: dict[int, int] = field(default_factory=dict)
    fail_at: int | None = None
    on_run: Callable[[], object] | None = None  # called before every run
    calls: list[tuple[int, int]] = field(default_factory=list)  # (past, tokens) of each

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        kv_width = CACHE.n_kv_heads * CACHE.head_dim
        widths = (DIM, kv_width, kv_width)
        self.layers = [
            ([rng.normal(0, 0.25, (DIM, width)) for width in widths], rng.normal(0, 0.25, (DIM, DIM)))
            for _ in range(CACHE.n_layers)
        ]
        self.positions = rng.normal(0, 1, (CACHE.max_context, DIM))
        self.head = rng.normal(0, 1, (DIM, self.vocab))
        self.table = rng.normal(0, 1, (self.vocab, DIM)).astype(np.float32)

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        embeddings, bias = inputs["embeddings"], inputs["attention_bias"]
        tokens, total = embeddings.shape[1], int(inputs["total_sequence_length"])
        past = total - tokens
        self._check(inputs, () if shared is None else shared.buffers, tokens, total)
        if self.on_run is not None:
            self.on_run()
        if self.fail_at is not None and total > self.fail_at:
            raise MemoryError("the engine failed")
        self.calls.append((past, tokens))
        assert shared is not None
        buffers = {buffer.input: buffer.array for buffer in shared.buffers}
        x = embeddings[0].astype(np.float64) + self.positions[past:total]
        for i, (qkv, out) in enumerate(self.layers):
            query, key, value = (x @ weight for weight in qkv)
            keys, values = buffers[f"past_key_values.{i}.key"], buffers[f"past_key_values.{i}.value"]
            keys[0, :, past:total] = key.reshape(tokens, CACHE.n_kv_heads, -1).transpose(1, 0, 2)
            values[0, :, past:total] = value.reshape(tokens, CACHE.n_kv_heads, -1).transpose(1, 0, 2)
            x = x + self._attend(query, keys[0, :, :total], values[0, :, :total], bias[0, 0]) @ out
        rows = inputs["logit_positions"]
        hidden = x[rows].astype(np.float32)
        logits = (x[rows] @ self.head).astype(np.float32)
        for row, position in enumerate(rows):
            if (forced := self.script.get(past + int(position))) is not None:
                logits[row, forced] += 1000
        return {"logits": logits, "hidden": hidden}

    def full(self, embeddings: Array, n_prefix: int) -> tuple[Array, Array]:
        """Logits (tokens, vocab) and hidden (tokens, dim) of a sequence whose first n_prefix tokens see each other."""
        n = len(embeddings)
        seen = np.tril(np.ones((n, n), bool))
        seen[:n_prefix, :n_prefix] = True
        x = embeddings.astype(np.float64) + self.positions[:n]
        for qkv, out in self.layers:
            query, key, value = (x @ weight for weight in qkv)
            mixed = np.zeros_like(query)
            for head in range(N_HEADS):
                columns = slice(head * 8, head * 8 + 8)
                for row in range(n):
                    weights = _softmax(query[row, columns] @ key[seen[row]].T / np.sqrt(8))
                    mixed[row, columns] = weights @ value[seen[row]]
            x = x + mixed @ out
        logits = x @ self.head
        for position, forced in self.script.items():
            logits[position : position + 1, forced] += 1000
        return logits, x

    @staticmethod
    def _attend(query: Array, keys: Array, values: Array, bias: Array) -> Array:
        """Rows of queries over keys (kv_heads, total, head_dim)."""
        heads = query.reshape(len(query), N_HEADS, -1)
        group = N_HEADS // CACHE.n_kv_heads
        mixed = [
            _softmax(heads[:, h] @ keys[h // group].T / np.sqrt(CACHE.head_dim) + bias) @ values[h // group]
            for h in range(N_HEADS)
        ]
        return np.concatenate(mixed, axis=-1)

    @staticmethod
    def _check(inputs: Mapping[str, Array], shared: tuple[Shared, ...], tokens: int, total: int) -> None:
        needed = {
            "embeddings": ("float32", (1, tokens, DIM)),
            "attention_bias": ("float32", (1, 1, tokens, total)),
            "seqlens_k": ("int32", (1,)),
            "total_sequence_length": ("int32", ()),
            "logit_positions": ("int64", inputs["logit_positions"].shape),
        }
        assert {name: (str(array.dtype), array.shape) for name, array in inputs.items()} == needed
        assert inputs["seqlens_k"][0] == total - 1
        assert np.isfinite(inputs["attention_bias"]).all()
        names = {f"{i}.{part}" for i in range(CACHE.n_layers) for part in ("key", "value")}
        assert {s.input.removeprefix("past_key_values.") for s in shared} == names
        assert all(s.output == s.input.replace("past_key_values", "present") for s in shared)
        shape = (1, CACHE.n_kv_heads, CACHE.max_context, CACHE.head_dim)
        assert all(s.array.shape == shape and s.array.dtype == np.float32 for s in shared)


class SmallGraph:
    """One of the other graphs."""

    def __init__(self, role: str, on_run: Callable[[str], object] | None = None) -> None:
        self._role = role
        self._on_run = on_run
        self._rng = np.random.default_rng(11)
        self._coordinate = self._rng.normal(0, 3, (1, DIM))
        self._size = self._rng.normal(0, 3, (2, DIM))
        self._bins = self._rng.normal(0, 1, (DIM, BINS))
        self._size_bins = self._rng.normal(0, 1, (DIM, 2 * BINS))
        self._pixels = self._rng.normal(0, 1, (3, 4))
        self._tokens = self._rng.normal(0, 1, (8, DIM))

    def run(self, inputs: Mapping[str, Array], shared: SharedBuffers | None = None) -> dict[str, Array]:
        if self._on_run is not None:
            self._on_run(self._role)
        ((name, x),) = inputs.items()
        assert x.dtype == np.float32
        outputs: dict[str, tuple[str, str, Callable[[], Array]]] = {
            "region_coordinate_encoder": ("coordinates", "embeddings", lambda: np.sin(x @ self._coordinate)),
            "region_size_encoder": ("sizes", "embeddings", lambda: np.sin(x @ self._size)),
            "region_coordinate_decoder": ("hidden", "logits", lambda: x @ self._bins),
            "region_size_decoder": ("hidden", "logits", lambda: (x @ self._size_bins).reshape(-1, 2, BINS)),
            "vision": ("crops", "features", lambda: self._features(x)),
            "project": ("features", "tokens", lambda: x @ self._tokens),
        }
        source, result, compute = outputs[self._role]
        assert name == source
        return {result: compute().astype(np.float32)}

    def _features(self, crops: Array) -> Array:
        """(crops, 3, 6, 6) to (crops, 9, 4): the mean color of each patch of 2 x 2 pixels."""
        patches = crops.reshape(len(crops), 3, 3, 2, 3, 2).mean(axis=(3, 5)).reshape(len(crops), 3, PATCHES)
        return np.asarray(patches.transpose(0, 2, 1) @ self._pixels)


class FakeEngine:
    """Opens graphs by their file's stem, and counts how often."""

    name = "fake"

    def __init__(self, decoder: TinyDecoder, on_run: Callable[[str], object] | None = None) -> None:
        self.decoder = decoder
        self._on_run = on_run
        self.paths: list[Path] = []

    @property
    def opened(self) -> list[str]:
        """The stems of what was opened, in order."""
        return [path.stem for path in self.paths]

    def open(self, path: Path) -> Graph:
        assert path.is_file()
        self.paths.append(path)
        return self.decoder if path.stem == "decoder" else SmallGraph(path.stem, self._on_run)
