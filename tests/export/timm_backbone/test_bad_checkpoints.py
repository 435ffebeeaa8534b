"""Which model a checkpoint is of, its classes and their names, and what is refused."""

from __future__ import annotations

import argparse
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families.timm_backbone.random_weights import write_random
from edgevlm_runtime.errors import CheckpointError
from tests.export.timm_backbone.backbones import SIDE, only_graph, read, write_config
from tests.export.timm_backbone.test_folding import FASTVIT, NATIVE


@pytest.fixture(scope="module")
def ten(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FastViT of 10 classes."""
    folder = tmp_path_factory.mktemp("checkpoints") / "ten"
    write_random(folder, "fastvit_t8", side=SIDE, num_classes=10, **FASTVIT)
    return folder


def edited(folder: Path, copy: Path, **fields: Any) -> Path:
    """A copy of a checkpoint with fields of its config.json changed."""
    copy.mkdir()
    (copy / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({**config, **fields}), encoding="utf-8")
    return copy


def refusal(path: Path, variant: str | None = None, labels: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(path, variant, labels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_timms_default_tag_of_small_tiny_vits_does_not_decide_the_classes(tmp_path: Path) -> None:
    """timm's default for tiny_vit_5m_224 has 21841 classes; a file of 1000 says nothing else about itself."""
    write_random(tmp_path, "tiny_vit_5m_224.dist_in22k_ft_in1k", depths=(1, 1, 1, 1))
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["head.fc.weight"].shape[0] == 1000
    write_config(tmp_path, "tiny_vit_5m_224", model_args={"depths": (1, 1, 1, 1)})
    recipe = read(tmp_path, "tiny_vit_5m_224")
    assert only_graph(recipe).outputs[0].shape == ("images", 1000)
    assert recipe.labels is not None and recipe.labels[281] == "tabby, tabby cat"


def test_a_config_of_other_classes_than_the_tensors(ten: Path, tmp_path: Path) -> None:
    message = refusal(edited(ten, tmp_path / "copy", num_classes=1000))
    assert "tensor head.fc.weight has shape (10, 128), expected (1000, 128)" in message
    assert message.endswith("it is a checkpoint of another variant than fastvit_t8")


def test_a_file_of_another_variant(tmp_path: Path) -> None:
    write_random(tmp_path / "t8", "fastvit_t8", side=SIDE)
    message = refusal(tmp_path / "t8" / "model.safetensors", "fastvit_t12.apple_in1k")
    assert "is a checkpoint of fastvit_t8 (config.json), not of fastvit_t12.apple_in1k" in message
    (tmp_path / "t8" / "config.json").unlink()
    message = refusal(tmp_path / "t8", "fastvit_t12.apple_in1k")
    assert "tensor stem.0.conv_kxk.0.conv.weight has shape (48, 3, 3, 3), expected (64, 3, 3, 3)" in message
    assert "another variant than fastvit_t12" in message


def test_tensors_of_no_fastvit(ten: Path, tmp_path: Path) -> None:
    copy = edited(ten, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    save_file({"lm_head.weight": torch.ones(3)}, copy / "model.safetensors")
    assert "unknown (lm_head.weight); is it a checkpoint of another model?" in refusal(copy)


def test_nobody_says_which_model(ten: Path, tmp_path: Path) -> None:
    copy = edited(ten, tmp_path / "copy")
    (copy / "config.json").unlink()
    assert refusal(copy).endswith("give a name of the catalog, or timm/NAME")


def test_an_architecture_that_timm_does_not_have(ten: Path, tmp_path: Path) -> None:
    message = refusal(edited(ten, tmp_path / "copy", architecture="fastvit_t9"))
    assert "has no model 'fastvit_t9'; the nearest is fastvit_t8" in message


def test_a_tag_that_timm_does_not_have(ten: Path, tmp_path: Path) -> None:
    copy = edited(ten, tmp_path / "copy")
    (copy / "config.json").unlink()
    assert "timm has no pretrained tag 'fastvit_t8.in21k'" in refusal(copy, "fastvit_t8.in21k")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "model_args has checkpoint_path"),
        ({"model_args": {"wings": 2}}, "timm can not build fastvit_t8 with its model_args"),
        ({"model_args": [1]}, "model_args must be an object"),
        ({"num_classes": "ten"}, "num_classes is 'ten', expected a number of classes"),
        ({"architecture": 5}, "architecture is 5, expected a name of timm"),
        ({"label_names": ["a", "b"]}, "label_names are not 10 names"),
        ({"pretrained_cfg": {"input_size": [1, 64, 64]}}, "only square color images"),
        ({"pretrained_cfg": {"crop_mode": "border"}}, "crop_mode 'border' with crop_pct 0.875 is not supported"),
        ({"pretrained_cfg": {"interpolation": "random"}}, "interpolation 'random' is not supported"),
        ({"pretrained_cfg": {"mean": 0.5}}, "mean is 0.5, expected 3 numbers"),
    ],
)
def test_config_that_can_not_be_followed(ten: Path, tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    message = refusal(edited(ten, tmp_path / "copy", **fields))
    assert said in message


def test_images_that_the_model_does_not_take(tmp_path: Path) -> None:
    write_random(tmp_path, "vit_tiny_patch16_224", side=224, num_classes=10, depth=1)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["input_size"] = [3, 100, 100]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "does not take images of 100 x 100 px" in refusal(tmp_path)


def test_labels_of_config(ten: Path, tmp_path: Path) -> None:
    names = [f"n{i}" for i in range(10)]
    recipe = read(edited(ten, tmp_path / "a", label_names=names, label_descriptions={"n3": "a\nthree"}))
    assert recipe.labels is not None and recipe.labels[2:4] == ("n2", "a three")
    assert recipe.parts.tasks == ("classify", "embed")
    recipe = read(edited(ten, tmp_path / "b", label_names={"1": "one"}))
    assert recipe.labels is not None and recipe.labels[:2] == ("class 0", "one")


def test_labels_of_a_file_come_first(ten: Path, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(f"digit {i}" for i in range(10)) + "\n", encoding="utf-8")
    recipe = read(edited(ten, tmp_path / "copy", label_names=[str(i) for i in range(10)]), labels=file)
    assert recipe.labels is not None and recipe.labels[9] == "digit 9"
    file.write_text("one\ntwo\n", encoding="utf-8")
    assert refusal(ten, labels=file).endswith("labels.txt: has 2 lines, but the model 10 classes; one label a line")
    assert "can not be read" in refusal(ten, labels=tmp_path / "none.txt")


def test_unknown_classes_have_no_labels(ten: Path) -> None:
    recipe = read(ten)
    assert recipe.labels is None and recipe.parts.tasks == ("classify", "embed")


def test_headless_models_embed(tmp_path: Path) -> None:
    write_random(tmp_path, "tiny_vit_5m_224", side=SIDE, num_classes=0, **NATIVE)
    recipe = read(tmp_path)
    assert only_graph(recipe).role == "vision" and recipe.parts.tasks == ("embed",)
    assert [(spec.name, spec.shape) for spec in only_graph(recipe).outputs] == [("embeddings", ("images", 64))]


def test_settings_beside_the_tensors_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TinyViT's training script saves its yacs configuration, others an argparse.Namespace."""
    node = type("CfgNode", (dict,), {"__module__": "yacs.config", "__qualname__": "CfgNode"})
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patched.setitem(sys.modules, "yacs.config", types.ModuleType("yacs.config"))
        patched.setattr(sys.modules["yacs.config"], "CfgNode", node, raising=False)
        settings = {"config": node(a=node(b=[1])), "args": argparse.Namespace(lr=0.1)}
        torch.save({"model": {"x": torch.ones(2)}, **settings}, tmp_path / "a.pth")
    assert list(open_checkpoint(tmp_path)) == ["x"]
