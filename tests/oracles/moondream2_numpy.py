"""Moondream 2 in plain NumPy and float64, from the published description of the model: slow, literal, no shared code.

Tensors go by their published names. Whatever the shapes say (layers, widths, bins) is read from them; the rest is in
`Sizes`. Texts are recomputed from their first token at every step: nothing is cached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the shapes of the tensors don't say."""

    heads: int
    kv_heads: int
    vision_heads: int
    patch: int
    crop: int
    margin: int

    @property
    def grid(self) -> int:
        return self.crop // self.patch


def gelu(x: Array) -> Array:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return np.asarray(0.5 * x * (1 + np.tanh(inner)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def rotate_interleaved(x: Array, position: int) -> Array:
    """One head's vector: halves of the first half are real and imaginary; written back re0, im0, re1, im1, ..."""
    rotary_dim = len(x) // 2
    out = x.copy()
    for j in range(rotary_dim // 2):
        angle = position * 10000.0 ** (-2 * j / rotary_dim)
        turned = complex(x[j], x[j + rotary_dim // 2]) * complex(math.cos(angle), math.sin(angle))
        out[2 * j], out[2 * j + 1] = turned.real, turned.imag
    return out


def stitch(tiles: Array, rows: int, cols: int, margin: int) -> Array:
    """Local features (tiles, grid, grid, dim), row-major, to (height, width, dim): each patch copied by itself."""
    grid, dim = tiles.shape[1], tiles.shape[-1]
    step = grid - 2 * margin
    out = np.full((rows * step + 2 * margin, cols * step + 2 * margin, dim), np.nan)
    for r in range(rows):
        for c in range(cols):
            top, bottom = (0 if r == 0 else margin), (grid if r == rows - 1 else grid - margin)
            left, right = (0 if c == 0 else margin), (grid if c == cols - 1 else grid - margin)
            for y in range(top, bottom):
                for x in range(left, right):
                    out[r * step + y, c * step + x] = tiles[r * cols + c, y, x]
    return out


def pool(x: Array, grid: int) -> Array:
    """(height, width, dim) to (grid, grid, dim): the mean of each adaptive window."""
    height, width, dim = x.shape
    out = np.zeros((grid, grid, dim))
    for i in range(grid):
        for j in range(grid):
            top, bottom = i * height // grid, math.ceil((i + 1) * height / grid)
            left, right = j * width // grid, math.ceil((j + 1) * width / grid)
            out[i, j] = x[top:bottom, left:right].reshape(-1, dim).mean(axis=0)
    return out


class Oracle:
    """The model over a mapping of published names to arrays."""

    def __init__(self, sizes: Sizes, tensors: Mapping[str, Array]) -> None:
        self.sizes = sizes
        self.tensors = {name: np.asarray(t, dtype=np.float64) for name, t in tensors.items()}
        self.vision_layers = self._layers("vision.blocks.")
        self.text_layers = self._layers("text.blocks.")

    def _layers(self, prefix: str) -> int:
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in self.tensors if name.startswith(prefix))

    def _linear(self, name: str, x: Array) -> Array:
        return np.asarray(x @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"])

    def _norm(self, name: str, x: Array) -> Array:
        mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        normed = (x - mean) / np.sqrt(variance + 1e-5)
        return np.asarray(normed * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])

    def _mlp(self, name: str, x: Array) -> Array:
        return self._linear(f"{name}.fc2", gelu(self._linear(f"{name}.fc1", x)))

    # vision

    def encode(self, crops: Array) -> Array:
        """Normalized crops (crops, 3, side, side) to features (crops, patches, dim)."""
        return np.stack([self._encode_crop(np.asarray(crop, dtype=np.float64)) for crop in crops])

    def _encode_crop(self, crop: Array) -> Array:
        side, grid = self.sizes.patch, self.sizes.grid
        patches = [
            crop[:, y * side : (y + 1) * side, x * side : (x + 1) * side].ravel()
            for y in range(grid)
            for x in range(grid)
        ]
        x = self._linear("vision.patch_emb", np.stack(patches)) + self.tensors["vision.pos_emb"][0]
        for i in range(self.vision_layers):
            name = f"vision.blocks.{i}"
            x = x + self._vision_attention(f"{name}.attn", self._norm(f"{name}.ln1", x))
            x = x + self._mlp(f"{name}.mlp", self._norm(f"{name}.ln2", x))
        return self._norm("vision.post_ln", x)

    def _vision_attention(self, name: str, x: Array) -> Array:
        heads, dim = self.sizes.vision_heads, x.shape[-1]
        head_dim = dim // heads
        q, k, v = np.split(self._linear(f"{name}.qkv", x), 3, axis=-1)
        attended = []
        for h in range(heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            attended.append(softmax(q[:, part] @ k[:, part].T / math.sqrt(head_dim)) @ v[:, part])
        return self._linear(f"{name}.proj", np.concatenate(attended, axis=-1))

    def project(self, features: Array) -> Array:
        """Global and local features side by side (patches, 2 * enc_dim) to image tokens (patches, dim)."""
        return self._mlp("vision.proj_mlp", np.asarray(features, dtype=np.float64))

    def image_tokens(self, crops: Array, rows: int, cols: int) -> Array:
        """All crops of one image, the global one first, to its tokens (patches, dim)."""
        grid = self.sizes.grid
        features = self.encode(crops)
        tiles = features[1:].reshape(rows * cols, grid, grid, -1)
        local = pool(stitch(tiles, rows, cols, self.sizes.margin), grid).reshape(grid * grid, -1)
        return self.project(np.concatenate([features[0], local], axis=-1))

    # text

    def hidden(self, embeddings: Array, n_prefix: int) -> Array:
        """Embeddings (tokens, dim) to hidden states before the last norm; the first n_prefix see each other."""
        x = np.asarray(embeddings, dtype=np.float64)
        for i in range(self.text_layers):
            name = f"text.blocks.{i}"
            h = self._norm(f"{name}.ln", x)
            x = x + self._text_attention(f"{name}.attn", h, n_prefix) + self._mlp(f"{name}.mlp", h)
        return x

    def _text_attention(self, name: str, x: Array, n_prefix: int) -> Array:
        heads, kv_heads = self.sizes.heads, self.sizes.kv_heads
        n_tokens, dim = x.shape
        head_dim = dim // heads
        qkv = self._linear(f"{name}.qkv", x)
        q = qkv[:, : heads * head_dim].reshape(n_tokens, heads, head_dim)
        k = qkv[:, heads * head_dim : (heads + kv_heads) * head_dim].reshape(n_tokens, kv_heads, head_dim)
        v = qkv[:, (heads + kv_heads) * head_dim :].reshape(n_tokens, kv_heads, head_dim)
        q = np.stack([[rotate_interleaved(q[t, h], t) for h in range(heads)] for t in range(n_tokens)])
        k = np.stack([[rotate_interleaved(k[t, h], t) for h in range(kv_heads)] for t in range(n_tokens)])
        out = np.zeros((n_tokens, heads, head_dim))
        for t in range(n_tokens):
            seen = n_prefix if t < n_prefix else t + 1
            for h in range(heads):
                shared = h // (heads // kv_heads)
                weights = softmax(k[:seen, shared] @ q[t, h] / math.sqrt(head_dim))
                out[t, h] = weights @ v[:seen, shared]
        return self._linear(f"{name}.proj", out.reshape(n_tokens, dim))

    def embed(self, ids: list[int]) -> Array:
        return np.asarray(self.tensors["text.wte"][ids])

    def logits(self, hidden: Array) -> Array:
        return self._linear("text.lm_head", self._norm("text.post_ln", np.asarray(hidden, dtype=np.float64)))

    def prefix(self, bos_id: int, image_tokens: Array) -> Array:
        return np.concatenate([self.embed([bos_id]), image_tokens])

    def greedy(
        self, prefix: Array, prompt: list[int], *, max_tokens: int, eos_id: int, suppressed_ids: tuple[int, ...] = ()
    ) -> list[int]:
        """The answer's ids without the end; `suppressed_ids` never follow the first token."""
        ids: list[int] = []
        while len(ids) < max_tokens:
            logits = self.logits(self.hidden(np.concatenate([prefix, self.embed(prompt + ids)]), len(prefix))[-1])
            if ids:
                logits[list(suppressed_ids)] = -np.inf
            if (token := int(logits.argmax())) == eos_id:
                break
            ids.append(token)
        return ids

    # region

    def _fourier(self, x: Array, weight: Array) -> Array:
        angles = 2 * math.pi * (np.asarray(x, dtype=np.float64) @ weight)
        return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)

    def encode_coordinate(self, x: Array) -> Array:
        """(n, 1) to (n, dim)."""
        return self._linear("region.coord_encoder", self._fourier(x, self.tensors["region.coord_features"]))

    def encode_size(self, x: Array) -> Array:
        """(n, 2) to (n, dim)."""
        return self._linear("region.size_encoder", self._fourier(x, self.tensors["region.size_features"]))

    def decode_coordinate(self, hidden: Array) -> Array:
        """(n, dim) to (n, bins)."""
        return self._mlp("region.coord_decoder", np.asarray(hidden, dtype=np.float64))

    def decode_size(self, hidden: Array) -> Array:
        """(n, dim) to (n, 2, bins): widths, then heights."""
        logits = self._mlp("region.size_decoder", np.asarray(hidden, dtype=np.float64))
        return np.stack([logits[:, : logits.shape[1] // 2], logits[:, logits.shape[1] // 2 :]], axis=1)

    def places(
        self, prefix: Array, prompt: list[int], *, eos_id: int, max_objects: int, sizes: str | None
    ) -> list[tuple[float, ...]]:
        """Points (x, y), or boxes (x_min, y_min, x_max, y_max) when `sizes` says how: "log" or "linear"."""
        sequence = np.concatenate([prefix, self.embed(prompt)])
        hidden = self.hidden(sequence, len(prefix))[-1:]
        found: list[tuple[float, ...]] = []
        while len(found) < max_objects and int(self.logits(hidden)[0].argmax()) != eos_id:
            center: list[float] = []
            for _ in range(2):
                bins = self.decode_coordinate(hidden)[0]
                center.append(int(bins.argmax()) / len(bins))
                sequence = np.concatenate([sequence, self.encode_coordinate(np.array([center[-1:]]))])
                hidden = self.hidden(sequence, len(prefix))[-1:]
            if sizes is None:
                found.append((center[0], center[1]))
                continue
            width, height = (size_of_bin(int(b.argmax()), len(b), sizes) for b in self.decode_size(hidden)[0])
            sequence = np.concatenate([sequence, self.encode_size(np.array([[width, height]]))])
            hidden = self.hidden(sequence, len(prefix))[-1:]
            x, y = center
            found.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
        return found


def size_of_bin(index: int, n_bins: int, scale: str) -> float:
    """Log: 2 ** (10 * bin / (bins - 1) - 10). Linear, of the older revisions: bin / bins."""
    return float(2.0 ** (10 * index / (n_bins - 1) - 10)) if scale == "log" else index / n_bins
