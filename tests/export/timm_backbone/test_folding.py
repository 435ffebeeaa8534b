"""Structural reparameterization: the folded graph computes what timm's unfolded module does, with nothing left over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgevlm_export.families.timm_backbone import TimmBackboneFamily
from edgevlm_export.families.timm_backbone.library import build
from edgevlm_export.families.timm_backbone.random_weights import randomize, write_random
from edgevlm_export.reparameterize import reparameterize, tiny_vit
from edgevlm_export.reparameterize.fastvit import fold_batch_norm
from tests.export.timm_backbone.backbones import SIDE, images, largest_error, only_graph, operators, read, run_onnx

FASTVIT: dict[str, Any] = {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 64), "mlp_ratios": (2, 2, 2, 2)}
FIVE_STAGES: dict[str, Any] = {
    "layers": (1, 1, 1, 1, 1),
    "embed_dims": (16, 32, 32, 64, 64),
    "mlp_ratios": (2, 2, 2, 2, 2),
}
TINY_VIT: dict[str, Any] = {"embed_dims": (16, 32, 32, 64), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 1, 2)}
NATIVE: dict[str, Any] = {**TINY_VIT, "window_sizes": (4, 4, 4, 2)}  # 4 windows, then one, then one


@dataclass(frozen=True, kw_only=True)
class Case:
    variant: str
    model_args: dict[str, Any]
    norms: dict[str, int]  # LayerNormalization that must stay


CASES = {
    "mci0": Case(variant="fastvit_mci0", model_args=FASTVIT, norms={}),
    "mci3": Case(variant="fastvit_mci3", model_args=FIVE_STAGES, norms={"LayerNormalization": 2}),
    "tiny_vit": Case(variant="tiny_vit_5m_224", model_args=NATIVE, norms={"LayerNormalization": 7}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_folded_graph_equals_the_published_module(case: Case, tmp_path: Path) -> None:
    write_random(tmp_path / "checkpoint", case.variant, side=SIDE, num_classes=10, **case.model_args)
    graph = only_graph(read(tmp_path / "checkpoint"))
    folded = graph.trace(False)
    assert operators(folded)["BatchNormalization"] == 0
    assert {name: n for name, n in operators(folded).items() if name == "LayerNormalization"} == case.norms
    inputs = images(3)
    assert largest_error(run_onnx(folded, inputs, tmp_path), graph.reference({"images": inputs})) < 1e-5


def test_published_graph_keeps_what_folding_removes(tmp_path: Path) -> None:
    write_random(tmp_path / "checkpoint", "fastvit_sa12", side=SIDE, num_classes=10, **FASTVIT)
    graph = only_graph(read(tmp_path / "checkpoint"))
    assert graph.trace_published is not None
    published, folded = graph.trace_published(), graph.trace(True)
    # Stem 6, downsamplings 4 each, RepMixer blocks 5 each, attention block 2, last convolution 2.
    assert operators(published)["BatchNormalization"] == 6 + 3 * 4 + 3 * 5 + 2 + 2
    assert len(folded.graph) < len(published.graph) / 2
    inputs = images(1)
    expected = graph.reference({"images": inputs})
    assert largest_error(run_onnx(published, inputs, tmp_path), expected) < 1e-5
    assert largest_error(run_onnx(folded, inputs, tmp_path), expected) < 1e-5
    assert [list(value.shape or ()) for value in (*folded.graph.inputs, *folded.graph.outputs)] == [
        [1, 3, SIDE, SIDE],
        [1, 10],
        [1, 128],
    ]


def test_full_size_fastvit_t8(tmp_path: Path) -> None:
    write_random(tmp_path / "checkpoint", "fastvit_t8.apple_in1k")
    graph = only_graph(read(tmp_path / "checkpoint"))
    folded = graph.trace(False)
    few = {"Add": 10, "ReduceMean": 2, "Relu": 1, "Sigmoid": 1, "Mul": 1, "Reshape": 1, "Gemm": 1}
    assert operators(folded) == {"Conv": 52, "Gelu": 17, **few}
    inputs = images(2, 256)
    assert largest_error(run_onnx(folded, inputs, tmp_path), graph.reference({"images": inputs})) < 1e-5


@pytest.mark.parametrize("side", [SIDE, 48], ids=["native", "padded"])
@pytest.mark.parametrize("limit", [tiny_vit.MAX_CONSTANT_BYTES, 0], ids=["constant", "gathered"])
def test_tiny_vit_module(monkeypatch: pytest.MonkeyPatch, side: int, limit: int) -> None:
    monkeypatch.setattr(tiny_vit, "MAX_CONSTANT_BYTES", limit)
    module = random_module("tiny_vit_5m_224", SIDE, NATIVE)
    folded = reparameterize(module)
    assert not [part for part in folded.modules() if isinstance(part, nn.BatchNorm2d)]
    inputs = torch.from_numpy(images(2, side))
    with torch.no_grad():
        torch.testing.assert_close(folded(inputs), module(inputs), rtol=1e-4, atol=1e-5)


def test_large_biases_stay_a_gather(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of 2 heads and 256 tokens in stage 1; those of the other stages are smaller."""
    monkeypatch.setattr(tiny_vit, "MAX_CONSTANT_BYTES", 4 * 2 * 256**2 - 1)
    model_args = {**TINY_VIT, "window_sizes": (16, 16, 8, 4)}
    write_random(tmp_path / "checkpoint", "tiny_vit_5m_224", side=2 * SIDE, num_classes=10, **model_args)
    recipe = read(tmp_path / "checkpoint")
    assert recipe.parts.notes["attention bias"].endswith("gathered in each run: 1")
    folded = only_graph(recipe).trace(False)
    assert operators(folded)["Gather"] == 1
    inputs = images(1, 2 * SIDE)
    assert largest_error(run_onnx(folded, inputs, tmp_path), only_graph(recipe).reference({"images": inputs})) < 1e-5


def test_published_module_is_left_alone(tmp_path: Path) -> None:
    module = random_module("tiny_vit_5m_224", SIDE, NATIVE)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    reparameterize(module)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_batch_norm_into_a_strided_grouped_convolution_with_bias() -> None:
    conv, norm = nn.Conv2d(6, 12, 5, stride=2, padding=2, groups=3), nn.BatchNorm2d(12)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias)
    norm.running_mean, norm.running_var = torch.randn(12), 0.5 + torch.rand(12)
    inputs = torch.randn(2, 6, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(fold_batch_norm(conv, norm)(inputs), norm.eval()(conv(inputs)), rtol=1e-4, atol=1e-5)


def test_shrunken_checkpoint_has_an_attention_stage(tmp_path: Path) -> None:
    TimmBackboneFamily().shrink(tmp_path)
    recipe = read(tmp_path)
    assert recipe.labels is None and only_graph(recipe).role == "classifier"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1 << 20


def random_module(architecture: str, side: int, model_args: dict[str, Any]) -> nn.Module:
    module = build(architecture, 10, model_args, "here")
    randomize(module, side, torch.Generator().manual_seed(0))
    return module
