"""Small timm checkpoints, and what their graphs compute in ONNX Runtime."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import ImageGraph, ImageRecipe, ReadOptions
from edgevlm_export.families.timm_backbone.random_weights import random_images
from edgevlm_runtime.engines import Array

SIDE = 64


def read(path: Path, variant: str | None = None, labels: Path | None = None) -> ImageRecipe:
    recipe = FAMILIES["timm_backbone"].read(open_checkpoint(path), ReadOptions(variant=variant, labels=labels))
    assert isinstance(recipe, ImageRecipe)
    return recipe


def images(count: int, side: int = SIDE, seed: int = 3) -> Array:
    """Float32 (count, 3, side, side)."""
    array: Array = random_images(count, side, torch.Generator().manual_seed(seed)).numpy()
    return array


def run_onnx(model: ir.Model, inputs: Array, folder: Path) -> dict[str, Array]:
    ir.save(model, folder / "graph.onnx")
    session = onnxruntime.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": inputs}), strict=True))


def largest_error(found: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
    """The largest difference of an output, over the output's largest value."""
    assert found.keys() == expected.keys()
    return max(float(np.abs(found[name] - value).max() / np.abs(value).max()) for name, value in expected.items())


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def write_pickle(path: Path, tensors: Mapping[str, Tensor], key: str) -> Path:
    """A training script's file: the tensors under `key`, and other things beside them."""
    torch.save({key: dict(tensors), "epoch": 300, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


def write_config(folder: Path, architecture: str, **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"architecture": architecture, **fields}), encoding="utf-8")


def only_graph(recipe: ImageRecipe) -> ImageGraph:
    (graph,) = recipe.graphs
    return graph
