"""Image models that see nothing but the mean color, small enough to be worked out by hand, as whole bundles.

A square image of one color is the vector 2 * (red, green, blue) - 1 to them. The classifier's logits are 3 times that
and 0; the dual encoder's text vectors are the same of the colors that a text names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgevlm_runtime.bundle import write_manifest
from edgevlm_runtime.manifest import (
    SCHEMA_VERSION,
    CenterCropSpec,
    FoldReport,
    GraphFidelity,
    GraphSpec,
    ImageFidelityReport,
    ImageSpec,
    Manifest,
    MatchSpec,
    NpuSpec,
    Provenance,
    TensorSpec,
    TextSpec,
)

SIDE = 8
WORDS = ("[PAD]", "[UNK]", "red", "green", "blue")
_VECTORS = np.array([(0, 0, 0), (0, 0, 0), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)], np.float32)
_IMAGES = TensorSpec(name="images", dtype="float32", shape=("images", 3, SIDE, SIDE))
_EMBEDDINGS = TensorSpec(name="embeddings", dtype="float32", shape=("images", 3))
_CLASSIFIER = GraphSpec(
    file="classifier.onnx",
    precision="fp32",
    inputs=(_IMAGES,),
    outputs=(
        TensorSpec(name="logits", dtype="float32", shape=("images", 4)),
        TensorSpec(name="features", dtype="float32", shape=("images", 3)),
    ),
)
_MANIFEST = Manifest(
    schema_version=SCHEMA_VERSION,
    name="colors",
    family="tests",
    description="which color an image has",
    precision="fp32",
    tasks=("classify", "embed"),
    graphs={"classifier": _CLASSIFIER},
    files={},
    provenance=Provenance(source="tests", revision="1", license="none", date="2026-01-01T00:00:00Z", tools={}),
    image=ImageSpec(
        crop_px=SIDE,
        resample="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        center_crop=CenterCropSpec(shortest_px=10, rounding="half_even"),
    ),
    image_fidelity=ImageFidelityReport(
        graphs=(GraphFidelity(role="classifier", relative_error=1e-6, cosine=0.9999),),
        n_images=7,
        top1_agreement=1.0,
        folds={"classifier": FoldReport(nodes_before=123, nodes_after=45, relative_error=2e-6)},
    ),
)
NPU = NpuSpec(
    target="hexagon-v75",
    engine="qnn",
    compiler="onnxruntime-qnn 2.7.0",
    checked_on="the Hexagon simulator",
    cosine=0.9987,
    top1_agreement=1.0,
)


def write_classifier(root: Path, labels: tuple[str, ...] | None = None, **changes: Any) -> Path:
    """A classifier of four classes with names or without."""
    root.mkdir(parents=True)
    weight = np.concatenate([3 * np.eye(3), np.zeros((3, 1))], axis=1).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["features"], keepdims=0),
        helper.make_node("MatMul", ["features", "weight"], ["logits"]),
    ]
    _save(root, _CLASSIFIER, nodes, {"axes": np.array([2, 3]), "weight": weight})
    if labels is not None:
        (root / "labels.txt").write_text("\n".join(labels) + "\n", encoding="utf-8")
        changes = {"labels": "labels.txt", **changes}
    write_manifest(root, replace(_MANIFEST, **changes))
    return root


def write_dual_encoder(root: Path, *, texts: bool = True, activation: str = "softmax") -> Path:
    """An encoder of images, and of texts of at most 8 words if wanted."""
    root.mkdir(parents=True)
    vision = GraphSpec(file="vision.onnx", precision="fp32", inputs=(_IMAGES,), outputs=(_EMBEDDINGS,))
    mean = helper.make_node("ReduceMean", ["images", "axes"], ["embeddings"], keepdims=0)
    _save(root, vision, [mean], {"axes": np.array([2, 3])})
    manifest = replace(_MANIFEST, name="eyes", tasks=("embed",), graphs={"vision": vision}, image_fidelity=None)
    if texts:
        manifest = _with_texts(root, manifest, activation)
    write_manifest(root, manifest)
    return root


def _with_texts(root: Path, manifest: Manifest, activation: Any) -> Manifest:
    ids = TensorSpec(name="token_ids", dtype="int64", shape=("texts", "tokens"))
    out = TensorSpec(name="embeddings", dtype="float32", shape=("texts", 3))
    text = GraphSpec(file="text.onnx", precision="fp32", inputs=(ids,), outputs=(out,))
    nodes = [
        helper.make_node("Gather", ["table", "token_ids"], ["words"]),
        helper.make_node("ReduceSum", ["words", "axes"], ["embeddings"], keepdims=0),
    ]
    _save(root, text, nodes, {"axes": np.array([1]), "table": _VECTORS})
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(root / "tokenizer.json"))
    return replace(
        manifest,
        name="colorwords",
        tasks=("classify", "embed", "search"),
        graphs={**manifest.graphs, "text": text},
        text=TextSpec(context=8, pad_id=0, end_id=None, pad_to_context=False),
        match=MatchSpec(scale=5.0, bias=-1.0, activation=activation, template="a photo of a {}."),
        tokenizer="tokenizer.json",
    )


def _save(root: Path, spec: GraphSpec, nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> None:
    def declare(tensor: TensorSpec) -> onnx.ValueInfoProto:
        kind = TensorProto.INT64 if tensor.dtype == "int64" else TensorProto.FLOAT
        return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)

    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(
        nodes, spec.file, [*map(declare, spec.inputs)], [*map(declare, spec.outputs)], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, root / spec.file)
