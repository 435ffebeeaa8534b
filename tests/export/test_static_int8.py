"""Static int8 of small graphs against float32: ranges, kept layers, what is quantized and what is not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgevlm_export import static_int8
from edgevlm_export.layer_costs import layer_costs
from edgevlm_export.static_int8 import QuantizedGraph, quantize_static
from edgevlm_runtime.engines import Array
from edgevlm_runtime.fidelity import mean_cosine

BAR = 0.99
Floats = npt.NDArray[np.float32]


class Net(nn.Module):
    """Convolutions of every kind, a product of activations, and two outputs."""

    def __init__(self, outlier: float = 1.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.multiplied = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.spoiled = nn.Conv2d(32, 32, 1)
        self.classifier = nn.Linear(32, 10)
        # One input channel far above the others that the weights hardly look at: the range has to hold it, and what
        # the others say is lost in its steps.
        self.outlier = outlier

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.functional.gelu(self.multiplied(nn.functional.gelu(self.depthwise(self.stem(images)))))
        scale = torch.ones(32)
        scale[5] = self.outlier
        x = x + nn.functional.conv2d(
            x * scale[:, None, None], self.spoiled.weight / scale[:, None, None], self.spoiled.bias
        )
        tokens = x.flatten(2).transpose(1, 2)
        attended = (tokens @ tokens.transpose(1, 2) / 32).softmax(-1) @ tokens
        features = attended.mean(1)
        return self.classifier(features), features


def trace(outlier: float = 1.0) -> ir.Model:
    torch.manual_seed(3)
    program = torch.onnx.export(
        Net(outlier).eval(),
        (torch.zeros(2, 3, 16, 16),),
        dynamo=True,
        verbose=False,
        opset_version=20,
        input_names=["images"],
        output_names=["logits", "features"],
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    assert program is not None
    return program.model


def draw(seed: int, count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [{"images": rng.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(count)]


def run(model: ir.Model, inputs: list[dict[str, Array]], path: Path) -> list[Floats]:
    ir.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [np.concatenate(each) for each in zip(*(session.run(None, feed) for feed in inputs), strict=True)]


def cosines(quantized: QuantizedGraph, outlier: float, folder: Path) -> list[float]:
    """Of logits and features, on inputs that nobody saw."""
    unseen = draw(7, 6)
    got, expected = (
        run(quantized.model, unseen, folder / "int8.onnx"),
        run(trace(outlier), unseen, folder / "fp32.onnx"),
    )
    return [mean_cosine(*pair) for pair in zip(got, expected, strict=True)]


@pytest.fixture(scope="module")
def plain() -> QuantizedGraph:
    return quantize_static(trace(), draw(1, 12), draw(2, 4), BAR)


def test_a_graph_without_outliers_is_int8_as_a_whole(plain: QuantizedGraph, tmp_path: Path) -> None:
    assert plain.kept == ()
    assert min(cosines(plain, 1.0, tmp_path)) > 0.995
    assert [value.name for value in plain.model.graph.outputs] == ["logits", "features"]


def test_weights_are_int8_with_a_scale_for_each_channel(plain: QuantizedGraph) -> None:
    weights = plain.model.graph.initializers
    stem, scales = weights["stem.weight_quantized"], weights["stem.weight_scale"]
    assert stem.const_value is not None and stem.const_value.dtype == ir.DataType.INT8
    assert scales.const_value is not None and scales.const_value.shape.numpy() == (16,)
    assert np.abs(stem.const_value.numpy().reshape(16, -1)).max(axis=1).min() == 127  # all 8 bits, in every channel
    zero_points = [value for name, value in weights.items() if name.startswith("images") and "zero_point" in name]
    assert [value.const_value.dtype for value in zero_points if value.const_value] == [ir.DataType.UINT8]


def test_what_has_no_fast_kernel_stays_in_float32(plain: QuantizedGraph) -> None:
    weights = plain.model.graph.initializers
    assert {"multiplied.weight", "depthwise.weight_quantized"} <= weights.keys()
    assert "depthwise.weight" not in weights


def test_products_hand_on_float32(plain: QuantizedGraph) -> None:
    """Neither rounding a result that is added to in float32 anyway, nor cutting off the best logits."""
    readers = [
        use.node.op_type for n in plain.model.graph if n.op_type in ("MatMul", "Gemm") for use in n.outputs[0].uses()
    ]
    assert "QuantizeLinear" not in readers
    kinds = Counter(node.op_type for node in plain.model.graph)
    assert kinds["MatMul"] == 2 and kinds["Gemm"] == 1


OUTLIER = 3000.0


def test_a_layer_that_hurts_is_found_and_kept(tmp_path: Path) -> None:
    quantized = quantize_static(trace(OUTLIER), draw(1, 12), draw(2, 4), BAR)
    assert len(quantized.kept) == 1
    (conv,) = [node for node in quantized.model.graph if node.name == quantized.kept[0]]
    assert conv.inputs[0] is not None and (producer := conv.inputs[0].producer()) is not None
    assert producer.op_type == "Mul"  # by the outlier
    assert min(cosines(quantized, OUTLIER, tmp_path)) > BAR


def test_without_keeping_it_the_bar_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_int8, "_keep_layers", lambda bench, attempt, bar: attempt)
    quantized = quantize_static(trace(OUTLIER), draw(1, 12), draw(2, 4), BAR)
    assert quantized.kept == ()
    assert min(cosines(quantized, OUTLIER, tmp_path)) < BAR - 0.005


def test_a_bar_out_of_reach_gives_half_of_the_layers_back() -> None:
    quantized = quantize_static(trace(), draw(1, 3), draw(2, 1), bar=1.1)
    assert len(quantized.kept) == 3  # of 6


def test_progress_is_told_of_each_input() -> None:
    told: list[None] = []
    quantize_static(trace(), draw(1, 3), draw(2, 1), 0.0, lambda: told.append(None))
    assert len(told) == 3


def test_costs_agree_with_graphs_quantized_without_the_layer(tmp_path: Path) -> None:
    """The probe with one layer in float32 against the file that ONNX Runtime writes when told to leave it out."""
    judged, model = draw(2, 2), trace(OUTLIER)
    bench = static_int8._Bench(tmp_path, static_int8._name_layers(model), judged)
    ir.save(model, bench.original)
    bench.calibrate(draw(1, 6), lambda: None)
    bench.attempt(100.0, ())
    costs = layer_costs(bench.original, bench.quantized, bench.layers, judged)
    assert costs.keys() == set(bench.layers)
    for layer, cosine in costs.items():
        assert bench.attempt(100.0, (layer,)).cosine == pytest.approx(cosine, abs=5e-4), layer
