"""CLIP's and SigLIP's graphs: single operators, named axes, and an export that says nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.export.dual_encoder.specimens import read

# All that computes on an NPU; nothing of shapes, and Gelu in one node.
STATIC = {"Conv", "Reshape", "Transpose", "Concat", "Add", "LayerNormalization", "MatMul", "Mul", "Softmax", "Sigmoid"}
STATIC |= {"Gelu", "Gather", "Gemm", "Squeeze", "Unsqueeze"}


def test_fixed_graphs_have_single_operators(folders: dict[str, Path], family: str) -> None:
    model = read(folders[family]).graphs[0].trace(True)
    assert {node.op_type for node in model.graph} <= STATIC
    assert model.opset_imports == {"": 20}
    activation = "Sigmoid" if family == "clip" else "Gelu"
    n_activations = sum(node.op_type == activation for node in model.graph)
    assert n_activations == (2 if family == "clip" else 3)
    values = (*model.graph.inputs, *model.graph.outputs)
    assert [value.name for value in values] == ["images", "embeddings"]
    assert all(isinstance(axis, int) for value in values for axis in value.shape or ())


def test_free_axes_are_named(folders: dict[str, Path]) -> None:
    vision, text = read(folders["clip"]).graphs
    for graph in (vision, text):
        model = graph.trace(False)
        specs = (*graph.inputs, *graph.outputs)
        for value, spec in zip((*model.graph.inputs, *model.graph.outputs), specs, strict=True):
            assert value.name == spec.name
            assert [str(axis) for axis in value.shape or ()] == [str(axis) for axis in spec.shape]
        assert not [name for name in model.graph.initializers if name.startswith("onnx::")]


def test_shapes_of_images_are_not_computed(folders: dict[str, Path]) -> None:
    """But for the number of images, to which the token before the patches is repeated."""
    operators = [node.op_type for node in read(folders["clip"]).graphs[0].trace(False).graph]
    assert operators.count("Shape") == 1 and operators.count("Concat") == 2


def test_an_export_is_silent(folders: dict[str, Path]) -> None:
    """In a process of its own: importing optimum and transformers is part of it."""
    script = (
        "import sys; from pathlib import Path\n"
        "from edgevlm_export.checkpoint import open_checkpoint\n"
        "from edgevlm_export.families import FAMILIES\n"
        "from edgevlm_export.families.family import ReadOptions\n"
        "recipe = FAMILIES['clip'].read(open_checkpoint(Path(sys.argv[1])), ReadOptions())\n"
        "assert len(recipe.graphs[1].trace(False).graph) > 50\n"
    )
    done = subprocess.run([sys.executable, "-c", script, folders["clip"]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
