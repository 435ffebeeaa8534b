"""ViT classifiers against transformers' own class, reading the same folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import transformers
from numpy.testing import assert_allclose
from PIL import Image
from safetensors.torch import load_file, save_file

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import ImageRecipe, ReadOptions
from edgevlm_export.torchvision_operators import declare_missing_operators
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.preprocess import prepare_image

NAMES = ("circle", "square", "triangle", "digit", "word", "arrow, or pointer", "nothing")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    declare_missing_operators()
    folder = tmp_path_factory.mktemp("vit") / "tiny"
    FAMILIES["vit"].shrink(folder)
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(published, tmp_path / "tiny"))


def read(folder: Path, labels: Path | None = None) -> ImageRecipe:
    recipe = FAMILIES["vit"].read(open_checkpoint(folder), ReadOptions(labels=labels))
    assert isinstance(recipe, ImageRecipe)
    return recipe


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("fixed", [False, True])
def test_logits_and_features_are_those_of_transformers(published: Path, fixed: bool) -> None:
    (graph,) = read(published).graphs
    model = ir.to_proto(graph.trace(fixed)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["logits", "features"]
    original = transformers.ViTForImageClassification.from_pretrained(published).eval()
    for n_images in (1,) if fixed else (1, 3, 8):
        images = np.random.default_rng(n_images).normal(size=(n_images, 3, 32, 32)).astype(np.float32)
        logits, features = session.run(["logits", "features"], {"images": images})
        with torch.no_grad():
            found = original(torch.from_numpy(images), output_hidden_states=True)
            pooled = original.vit.layernorm(found.hidden_states[-1])[:, 0]
        assert_allclose(logits, found.logits.numpy(), atol=1e-5, rtol=1e-5)
        assert_allclose(features, pooled.numpy(), atol=1e-5, rtol=1e-5)


def test_fixed_graphs_have_single_operators(published: Path) -> None:
    (graph,) = read(published).graphs
    model = graph.trace(True)
    operators = [node.op_type for node in model.graph]
    assert model.opset_imports == {"": 20}
    assert operators.count("Gelu") == 2 and operators.count("LayerNormalization") == 5
    assert not {"Erf", "Shape", "ConstantOfShape", "Expand", "Where", "Identity"} & set(operators)


@pytest.mark.parametrize("changes", [{}, {"size": 32}, {"image_processor_type": None}, {"resample": 3}])
def test_images_are_prepared_as_by_transformers(folder: Path, changes: dict[str, Any]) -> None:
    """Squeezed into a square, whatever their shape."""
    edit_json(folder / "preprocessor_config.json", **changes)
    spec = read(folder).parts.image
    assert spec is not None and spec.center_crop is None
    processor = transformers.ViTImageProcessor.from_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 256, (57, 40, 3), dtype=np.uint8)
    expected = processor(images=Image.fromarray(noise), return_tensors="np")["pixel_values"][0]
    assert_allclose(prepare_image(noise, spec), expected, atol=1e-6)


def test_labels_come_from_the_config_or_a_file(folder: Path, tmp_path: Path) -> None:
    assert read(folder).labels == NAMES
    names = tmp_path / "names.txt"
    names.write_text("\n".join("abcdefg") + "\n")
    assert read(folder, names).labels == tuple("abcdefg")
    names.write_text("\n".join("abcdef") + "\n")
    with pytest.raises(CheckpointError, match=r"names.txt: has 6 lines"):
        read(folder, names)


def test_classes_that_nobody_named(folder: Path) -> None:
    edit_json(folder / "config.json", id2label={str(i): f"LABEL_{i}" for i in range(7)}, label2id={})
    assert read(folder).labels is None
    edit_json(folder / "config.json", id2label={str(i + 1): f"name {i}" for i in range(7)})
    with pytest.raises(CheckpointError, match=r"config.json: id2label has 7 names"):
        read(folder)


def test_tensors_that_do_not_fit(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 missing \(classifier.weight, classifier.bias\)"):
        read(folder)
    save_file({**tensors, "classifier.bias": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"classifier.bias has shape \(3,\), expected \(7,\)"):
        read(folder)
