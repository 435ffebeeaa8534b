"""Other models of timm: traced as they are, batch norms folded in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgevlm_export.families.timm_backbone.random_weights import write_random
from tests.export.timm_backbone.backbones import SIDE, images, largest_error, only_graph, operators, read, run_onnx

MODELS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "mobilenetv3_small_050": {},
    "vit_tiny_patch16_224": {"img_size": SIDE, "depth": 2},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "test_efficientnet": {},
}


@pytest.mark.parametrize("name", MODELS)
def test_traced_and_equal(name: str, tmp_path: Path) -> None:
    write_random(tmp_path / "checkpoint", name, side=SIDE, num_classes=10, **MODELS[name])
    graph = only_graph(read(tmp_path / "checkpoint"))
    model = graph.trace(False)
    assert operators(model)["BatchNormalization"] == 0
    inputs = images(3)
    assert largest_error(run_onnx(model, inputs, tmp_path), graph.reference({"images": inputs})) < 1e-5


def test_weights_lie_as_the_graph_multiplies_them(tmp_path: Path) -> None:
    """No Transpose of an initializer is left for the engine to do."""
    write_random(tmp_path, "vit_tiny_patch16_224", side=SIDE, num_classes=10, img_size=SIDE, depth=1)
    graph = only_graph(read(tmp_path)).trace(False).graph
    constant = [
        (node.op_type, i) for node in graph for i, value in enumerate(node.inputs) if value and is_constant(value)
    ]
    assert constant.count(("MatMul", 1)) == 4
    assert ("Transpose", 0) not in constant
    assert all(value.uses() for value in graph.initializers.values())


def is_constant(value: ir.Value) -> bool:
    return value.const_value is not None


def test_older_names_are_translated_by_timm(tmp_path: Path) -> None:
    """A ConvNeXt as its authors publish it."""
    write_random(tmp_path / "timm", "convnext_atto", side=SIDE, num_classes=10, depths=(1, 1, 1, 1))
    tensors = load_file(tmp_path / "timm" / "model.safetensors")
    older: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        for new, old in (
            ("stem.0", "downsample_layers.0.0"),
            ("stem.1", "downsample_layers.0.1"),
            ("conv_dw", "dwconv"),
            ("mlp.fc1", "pwconv1"),
            ("mlp.fc2", "pwconv2"),
            ("head.norm", "norm"),
            ("head.fc", "head"),
        ):
            name = name.replace(new, old)
        for stage in range(4):
            name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
            name = name.replace(f"stages.{stage}.blocks.", f"stages.{stage}.")
        older[name] = value
    (tmp_path / "older").mkdir()
    save_file(older, tmp_path / "older" / "model.safetensors")
    (tmp_path / "older" / "config.json").write_bytes((tmp_path / "timm" / "config.json").read_bytes())
    inputs = {"images": images(2)}
    found, expected = (only_graph(read(tmp_path / name)).reference(inputs) for name in ("older", "timm"))
    assert largest_error(found, expected) == 0
