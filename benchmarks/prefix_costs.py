"""Operations of reading an image and a question, compressed or not, from the shapes of a bundle's graphs.

A multiplication and an addition are two. A layer reads n tokens behind m others with 2 n for each value of its
matrices, and with 4 n (n + m) dim for scores and sums of attention: masked scores are computed as well, and count. The
head is paid once a call. Norms, activations, rotations and what quantization adds do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import onnx

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.manifest import Role, TensorSpec
from edgevlm_runtime.parts import needed


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sizes of a model that compresses and fuses.

    `patches` are those of the whole image, `features` those of all its crops; `_values` are of a graph's matrices, of
    which the decoder's are those of its layers, without the head's.
    """

    dim: int
    patches: int
    features: int
    compressed: int
    fusion_layers: int
    fusion_values: int
    layers: int
    layer_values: int
    head_values: int
    vision_dim: int
    vision_layers: int
    vision_values: int

    @property
    def crops(self) -> int:
        """How often the vision tower runs for an image."""
        return self.features // self.patches

    @property
    def compressed_features(self) -> int:
        """Patches that are compressed: those of the tiles, where there are any."""
        return self.patches if self.crops == 1 else self.features - self.patches


@dataclass(frozen=True, kw_only=True)
class Words:
    """Tokens before the image and of the question; `fused_` are those that take part in fusion."""

    before: int
    fused_before: int
    question: int
    fused_question: int


def read_shapes(bundle: Bundle) -> Shapes:
    """The sizes of a bundle that has all of the graphs.

    Raises:
        DamagedBundle: it does not compress and fuse.
    """
    manifest = bundle.manifest
    fusion, cache = needed(manifest.fusion, "fusion"), needed(manifest.cache, "cache")

    def values(role: Role) -> int:
        return matrix_values(bundle.path(manifest.graphs[role].file))

    _, patches, vision_dim = _axes(manifest.graphs["vision"].outputs[0])
    _, tokens, dim = _axes(manifest.graphs["project"].outputs[0])
    head_values = dim * _axes(manifest.graphs["decoder"].outputs[0])[-1]
    return Shapes(
        dim=dim,
        patches=patches,
        features=tokens - fusion.n_compressed,
        compressed=fusion.n_compressed,
        fusion_layers=fusion.n_layers,
        fusion_values=values("prefuse"),
        layers=cache.n_layers,
        layer_values=values("decoder") - head_values,
        head_values=head_values,
        vision_dim=vision_dim,
        vision_layers=count_attention(bundle.path(manifest.graphs["vision"].file)),
        vision_values=values("vision"),
    )


def matrix_values(path: Path) -> int:
    """Values of all constant matrices that a graph multiplies with, quantized ones included."""
    graph = onnx.load(str(path), load_external_data=False).graph
    sizes = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    total = 0
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in sizes:
            sizes[node.output[0]] = sizes[node.input[0]]
        elif node.op_type == "MatMulNBits":
            total += prod(attribute.i for attribute in node.attribute if attribute.name in ("K", "N"))
        elif node.op_type == "MatMul":
            total += sizes.get(node.input[1], 0)
    return total


def count_attention(path: Path) -> int:
    """Layers of a vision graph that look at other patches."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return sum(node.op_type == "MultiHeadAttention" for node in graph.node)


def second_question(shapes: Shapes, words: Words) -> int:
    """Of a question about an image that was read: fusion and decoder read its tokens only."""
    fused_past = shapes.features + shapes.compressed + words.fused_before
    return _fuse(shapes, words.fused_question, fused_past) + _decode(
        shapes, words.question, words.before + shapes.compressed
    )


def new_image(shapes: Shapes, words: Words) -> int:
    """Of a question about a new image whose tokens are there, fused and compressed; both calls of the decoder."""
    read = _fuse(shapes, shapes.features + shapes.compressed + words.fused_before, 0)
    return read + _decode(shapes, words.before + shapes.compressed, 0) + second_question(shapes, words)


def plain_prefix(shapes: Shapes, words: Words) -> int:
    """Of the same question in one call, behind all patches of the whole image."""
    return _decode(shapes, words.before + shapes.patches + words.question, 0)


def compressing_tower(shapes: Shapes) -> int:
    """Of the vision tower for all crops, the compression, and the projection of all that comes of it."""
    dim, keys, queries = shapes.vision_dim, shapes.compressed_features, shapes.compressed
    compression = 2 * (2 * keys + queries) * dim**2 + 4 * queries * keys * dim
    return shapes.crops * _tower(shapes) + compression + _projection(shapes, shapes.features + queries)


def plain_tower(shapes: Shapes) -> int:
    """Of the vision tower for the whole image, and the projection of its patches."""
    return _tower(shapes) + _projection(shapes, shapes.patches)


def saving(shapes: Shapes, words: Words, *, with_tower: bool) -> float:
    """The share of operations that a new image's first token saves."""
    ours, theirs = new_image(shapes, words), plain_prefix(shapes, words)
    if with_tower:
        ours, theirs = ours + compressing_tower(shapes), theirs + plain_tower(shapes)
    return 1 - ours / theirs


ALL: dict[str, Callable[[Shapes, Words], int]] = {
    "second_question": second_question,
    "new_image": new_image,
    "plain_prefix": plain_prefix,
}


def _read(values: int, n_layers: int, dim: int, n_tokens: int, n_past: int) -> int:
    """Of layers with so many values in their matrices."""
    return 2 * n_tokens * values + 4 * n_layers * n_tokens * (n_past + n_tokens) * dim


def _fuse(shapes: Shapes, n_tokens: int, n_past: int) -> int:
    return _read(shapes.fusion_values, shapes.fusion_layers, shapes.dim, n_tokens, n_past)


def _decode(shapes: Shapes, n_tokens: int, n_past: int) -> int:
    """One call of the decoder, with the logits after its last token."""
    return _read(shapes.layer_values, shapes.layers, shapes.dim, n_tokens, n_past) + 2 * shapes.head_values


def _tower(shapes: Shapes) -> int:
    """One crop; the embedding of patches is counted for the class token too."""
    return _read(shapes.vision_values, shapes.vision_layers, shapes.vision_dim, shapes.patches + 1, 0)


def _projection(shapes: Shapes, n_tokens: int) -> int:
    return 2 * n_tokens * (shapes.vision_dim + shapes.dim) * shapes.dim


def _axes(spec: TensorSpec) -> tuple[int, ...]:
    """A tensor's axes; those that are free are 0."""
    return tuple(axis if isinstance(axis, int) else 0 for axis in spec.shape)
