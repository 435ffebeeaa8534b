"""Bundles of image models: small real graphs, and a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from edgevlm_runtime.bundle import Bundle, open_bundle, write_manifest
from edgevlm_runtime.manifest import (
    SCHEMA_VERSION,
    CenterCropSpec,
    GraphSpec,
    ImageSpec,
    Manifest,
    MatchSpec,
    Provenance,
    TensorSpec,
    TextSpec,
)

SIDE, DIM, CLASSES = 8, 6, 5
WORDS = ("<s>", "</s>", "<unk>", "a", "photo", "of", "red", "green", "blue", "bicycle", ".")
NAMES = ("red", "green", "blue", "gray", "a cat, asleep")
_rng = np.random.default_rng(3)
COLORS = _rng.normal(0, 1, (3, DIM)).astype(np.float32)
HEAD = _rng.normal(0, 1, (DIM, CLASSES)).astype(np.float32)
TABLE = _rng.normal(0, 1, (len(WORDS), DIM)).astype(np.float32)
for _word, _channel in (("red", 0), ("green", 1), ("blue", 2)):
    TABLE[WORDS.index(_word)] = 8 * COLORS[_channel]

IMAGE = ImageSpec(
    crop_px=SIDE,
    resample="bicubic",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.25),
    center_crop=CenterCropSpec(shortest_px=11, rounding="half_even"),
)
TEXT = TextSpec(context=7, pad_id=1, end_id=1, pad_to_context=False)
MATCH = MatchSpec(scale=10.0, bias=-2.0, activation="softmax", template="a photo of a {}.")
_MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    name="tiny-images",
    family="fake",
    description="for tests",
    precision="fp32",
    tasks=("classify", "embed"),
    graphs={},
    files={},
    provenance=Provenance(source="tests", revision="1", license="none", date="2026-01-01T00:00:00Z", tools={}),
    image=IMAGE,
)


def write_classifier(root: Path, *, labels: str | None = "\n".join(NAMES) + "\n", **changes: Any) -> Bundle:
    """The mean color of an image through two matrices: features, then logits."""
    graph = _write_images(root, "classifier", {"features": DIM, "logits": CLASSES})
    if labels is not None:
        (root / "labels.txt").write_text(labels, encoding="utf-8")
    values = {"graphs": {"classifier": graph}, "labels": None if labels is None else "labels.txt", **changes}
    return _finish(root, **values)


def write_dual_encoder(root: Path, **changes: Any) -> Bundle:
    """Embeddings of an image's mean color and of the mean of a text's words; a color's word is alike to the color."""
    vision = _write_images(root, "vision", {"embeddings": DIM})
    nodes = [
        helper.make_node("Gather", ["table", "token_ids"], ["words"]),
        helper.make_node("ReduceMean", ["words", "axes"], ["embeddings"], keepdims=0),
    ]
    constants: dict[str, npt.NDArray[Any]] = {"table": TABLE, "axes": np.array([1], np.int64)}
    text = _write(root, "text", nodes, constants, ("token_ids", ("texts", "tokens")), {"embeddings": ("texts", DIM)})
    make_tokenizer().save(str(root / "tokenizer.json"))
    values = {
        "graphs": {"vision": vision, "text": text},
        "tasks": ("classify", "embed", "search"),
        "text": TEXT,
        "match": MATCH,
        "tokenizer": "tokenizer.json",
        **changes,
    }
    return _finish(root, **values)


def write_encoder(root: Path, *, images: int | str = "images", **changes: Any) -> Bundle:
    """An image encoder alone; `images` is its first axis."""
    graph = _write_images(root, "vision", {"embeddings": DIM}, images)
    return _finish(root, **{"graphs": {"vision": graph}, "tasks": ("embed",), **changes})


def make_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def _write_images(root: Path, role: str, outputs: Mapping[str, int], images: int | str = "images") -> GraphSpec:
    nodes = [helper.make_node("ReduceMean", ["images", "axes"], ["color"], keepdims=0)]
    nodes.append(helper.make_node("MatMul", ["color", "colors"], [next(iter(outputs))]))
    if "logits" in outputs:
        nodes.append(helper.make_node("MatMul", ["features", "head"], ["logits"]))
    constants: dict[str, npt.NDArray[Any]] = {"axes": np.array([2, 3], np.int64), "colors": COLORS, "head": HEAD}
    shapes = {name: (images, width) for name, width in outputs.items()}
    return _write(root, role, nodes, constants, ("images", (images, 3, SIDE, SIDE)), shapes)


def _write(
    root: Path,
    role: str,
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, npt.NDArray[Any]],
    source: tuple[str, tuple[int | str, ...]],
    outputs: Mapping[str, tuple[int | str, ...]],
) -> GraphSpec:
    root.mkdir(parents=True, exist_ok=True)
    name, shape = source
    dtype = "int64" if name == "token_ids" else "float32"
    used = {tensor for node in nodes for tensor in node.input}
    graph = helper.make_graph(
        nodes,
        role,
        [helper.make_tensor_value_info(name, TensorProto.INT64 if dtype == "int64" else TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, axes) for output, axes in outputs.items()],
        [numpy_helper.from_array(value, key) for key, value in constants.items() if key in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, root / f"{role}.onnx")
    return GraphSpec(
        file=f"{role}.onnx",
        precision="fp32",
        inputs=(TensorSpec(name=name, dtype=dtype, shape=shape),),
        outputs=tuple(TensorSpec(name=each, dtype="float32", shape=axes) for each, axes in outputs.items()),
    )


def _finish(root: Path, **values: Any) -> Bundle:
    write_manifest(root, replace(_MANIFEST, **values))
    return open_bundle(root)
