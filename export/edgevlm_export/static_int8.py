"""Image graphs to int8: ONNX Runtime quantizes, measurement decides the ranges and which layers stay in float32.

Weights are int8, symmetric, with a scale for each output channel; activations uint8 with one scale and zero point a
tensor. Only matrix products and convolutions are quantized. What lies between them stays in float32: with Add, Mul,
Softmax and the moving of axes in int8 as well neither ONNX Runtime nor OpenVINO was clearly faster, and the cosine of
TinyViT fell from 0.988 to 0.977.

Weights use all 8 bits; with 7 the cosine of FastViT fell by 0.002, that of TinyViT by 0.003. Only x86 processors
without VNNI would gain, since they add two products in 16 bits, which can saturate; ONNX Runtime has its own option
against that (session.x64quantprecision).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir
from onnxruntime import quantization
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData, create_calibrator, save_tensors_data

from edgevlm_export.layer_costs import layer_costs
from edgevlm_export.quiet import quiet
from edgevlm_export.sessions import run_each, worst_cosine
from edgevlm_runtime.engines import Array

Inputs = Sequence[Mapping[str, Array]]

# How much of each tensor's values the range holds, in percent. Which is best depends on the model: cutting off a ten
# thousandth brings FastViT from 0.978 to 0.986, but may cut off what others live on. (Entropy equaled 100 there.)
_PERCENTILES = (99.99, 99.999, 100.0)
_OPERATORS = ("Conv", "MatMul", "Gemm")
_FLOAT_OUTPUTS = ["MatMul", "Gemm"]
_MOST_KEPT = 0.5  # of the layers: with more in float32 a graph is not int8 any longer
_MEASURED = 3  # inputs on which layers are compared


def _nothing() -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True, kw_only=True)
class QuantizedGraph:
    """A QDQ graph with its weights, and the layers left in float32 because they hurt most, by their weights' names."""

    model: ir.Model
    kept: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One quantized file: what it cuts off, what it keeps, and the worst output's cosine for each judged input."""

    percentile: float
    kept: tuple[str, ...]
    cosines: tuple[float, ...]

    @property
    def cosine(self) -> float:
        return sum(self.cosines) / len(self.cosines)


def quantize_static(
    model: ir.Model,
    calibration: Inputs,
    judged: Inputs,
    bar: float,
    progress: Callable[[], None] = _nothing,
) -> QuantizedGraph:
    """Quantize a float32 graph that has its weights; nodes of the given one get names.

    The calibration inputs give the ranges. On the judged inputs each output's mean cosine with float32 has to reach
    `bar`: where it does not, layers go back to float32, those first whose return helps most by itself, as few as
    suffice and at most half. A graph that misses the bar even so is returned all the same, to fail its verification.
    `progress` is called after each calibration input.
    """
    layers = _name_layers(model)
    # The quantizer prints, and advises to prepare models as they have been.
    silence = contextlib.redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory(prefix="edgevlm-") as folder, quiet(""), silence:
        bench = _Bench(Path(folder), layers, judged)
        ir.save(model, bench.original, external_data="original.data")
        bench.calibrate(calibration, progress)
        attempt = max((bench.attempt(percentile, ()) for percentile in _PERCENTILES), key=lambda tried: tried.cosine)
        if attempt.cosine < bar:
            attempt = _keep_layers(bench, attempt, bar)
        return QuantizedGraph(model=bench.load(attempt), kept=attempt.kept)


def _keep_layers(bench: _Bench, attempt: _Attempt, bar: float) -> _Attempt:
    """The shortest start of the ranking that reaches the bar: doubled until it does, then halved towards it."""
    percentile, ranking = attempt.percentile, bench.rank(attempt)
    most = int(len(ranking) * _MOST_KEPT)
    failing, count = 0, min(1, most)
    passing = bench.attempt(percentile, ranking[:count])
    while passing.cosine < bar and count < most:
        failing, count = count, min(2 * count, most)
        passing = bench.attempt(percentile, ranking[:count])
    if passing.cosine < bar:
        return passing
    while count - failing > 1:
        middle = (failing + count) // 2
        tried = bench.attempt(percentile, ranking[:middle])
        if tried.cosine < bar:
            failing = middle
        else:
            count, passing = middle, tried
    return passing


@dataclass
class _Bench:
    """The files of one graph in a temporary folder: the original, the ranges of its tensors, the last attempt."""

    folder: Path
    layers: tuple[str, ...]
    judged: Inputs
    _ranges: dict[float, Path] = field(default_factory=dict)
    _expected: list[list[Array]] = field(default_factory=list)

    @property
    def original(self) -> Path:
        return self.folder / "original.onnx"

    @property
    def quantized(self) -> Path:
        return self.folder / "quantized.onnx"

    def calibrate(self, calibration: Inputs, progress: Callable[[], None]) -> None:
        """Histograms of what every layer reads and writes, one input at a time; a file of ranges per percentile."""
        calibrator = create_calibrator(
            self.original,
            list(_OPERATORS),
            augmented_model_path=str(self.folder / "calibration.onnx"),
            calibrate_method=CalibrationMethod.Percentile,
            use_external_data_format=True,
        )
        for inputs in calibration:
            calibrator.collect_data(_Reader(inputs))
            progress()
        for percentile in _PERCENTILES:
            calibrator.collector.percentile = percentile
            found = calibrator.collector.compute_percentile()
            limits = {name: (low, high) for name, (low, high, *_) in found.items()}
            self._ranges[percentile] = self.folder / f"{percentile}.json"
            save_tensors_data(TensorsData(CalibrationMethod.MinMax, limits), self._ranges[percentile])
        self._expected = run_each(self.original, self.judged)

    def attempt(self, percentile: float, kept: Sequence[str]) -> _Attempt:
        """Quantize all layers but some, and compare."""
        self._quantize(percentile, kept)
        outputs = run_each(self.quantized, self.judged)
        cosines = tuple(map(worst_cosine, outputs, self._expected))
        return _Attempt(percentile=percentile, kept=tuple(kept), cosines=cosines)

    def rank(self, attempt: _Attempt) -> list[str]:
        """The layers, the one that hurts most first, by the inputs that suffer most."""
        self._quantize(attempt.percentile, attempt.kept)
        by_cosine = sorted(range(len(self.judged)), key=lambda index: attempt.cosines[index])
        inputs = [self.judged[index] for index in by_cosine[:_MEASURED]]
        costs = layer_costs(self.original, self.quantized, self.layers, inputs)
        return sorted(costs, key=lambda layer: costs[layer], reverse=True)

    def load(self, attempt: _Attempt) -> ir.Model:
        """The graph of an attempt, with its weights in memory."""
        self._quantize(attempt.percentile, attempt.kept)
        return ir.external_data.load_to_model(ir.load(self.quantized))

    def _quantize(self, percentile: float, kept: Sequence[str]) -> None:
        for file in self.folder.glob("quantized.onnx*"):
            file.unlink()
        quantization.quantize_static(
            self.original,
            self.quantized,
            None,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=list(_OPERATORS),
            nodes_to_quantize=[layer for layer in self.layers if layer not in kept],
            use_external_data_format=True,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=self._ranges[percentile],
            extra_options={"OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUTS},
        )


def _name_layers(model: ir.Model) -> tuple[str, ...]:
    """Name each node that int8 makes faster by its weight, and give these names."""
    names: list[str] = []
    for index, node in enumerate(model.graph):
        if node.op_type in _OPERATORS and not _is_slow(node):
            weight = next((v.name for v in node.inputs[:2] if v is not None and v.const_value is not None), None)
            name = weight.removesuffix(".weight") if weight else f"{node.op_type}_{index}"
            node.name = name if name not in names else f"{name}_{index}"
            names.append(node.name)
    return tuple(names)


def _is_slow(node: ir.Node) -> bool:
    """A convolution in groups but not depthwise: in ONNX Runtime float32 is up to 40 times faster than int8."""
    groups = node.attributes.get_int("group", 1)
    if node.op_type != "Conv" or groups == 1:
        return False
    weight = node.inputs[1]
    assert weight is not None and weight.shape is not None
    return (weight.shape[0], weight.shape[1]) != (groups, 1)


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """One calibration input, once."""

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self._inputs: list[dict[str, Array]] = [dict(inputs)]

    def get_next(self) -> dict[str, Array] | None:
        return self._inputs.pop() if self._inputs else None
