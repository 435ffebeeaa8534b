"""How near an image model's bundle must be to its checkpoint, and the comparison, through the runtime that will run it.

fp32: sums in another order, 1e-6 of the largest value, and 1e-5 after folding; ten times that is allowed.
fp16: weights rounded by 3e-4.
int8: weights by channel and activations by tensor in 8 bits, ranges from calibration: a cosine of 0.99 is the bar.
A single value may be off by half of the largest: at that cosine errors are a seventh of the values in size, and the
largest of a thousand errors is three to four times that.
Compiled for a Hexagon activations have 16 bits: 0.995. Other NPUs run the bundle's precision.

Between two classes that are equally likely rounding decides. An image therefore agrees when the original finds the
bundle's first class at most `tie_nats` less likely (in logarithms of probability) than its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir

from edgevlm_export import emit
from edgevlm_export.families.family import ImageGraph
from edgevlm_export.fidelity import compare_outputs
from edgevlm_export.npu import NpuTarget
from edgevlm_export.samples import GOLDEN_TEXTS, Inputs
from edgevlm_runtime.bundle import open_bundle
from edgevlm_runtime.engines import Array, open_engine
from edgevlm_runtime.errors import FidelityError
from edgevlm_runtime.fidelity import relative_error, require, share_agreeing
from edgevlm_runtime.golden import GOLDEN
from edgevlm_runtime.golden_images import GoldenImages, ImageLimits, image_checks, run_golden, write_golden_images
from edgevlm_runtime.manifest import FoldReport, GraphFidelity, ImageFidelityReport, NpuSpec, Precision, Role

FOLDED_ERROR = 1e-4
INT8_TARGET = 0.992  # the cosine to reach by keeping layers in float32, on images of calibration
HEXAGON_LIMITS = ImageLimits(graph_cosine=0.995, graph_relative_error=0.5, top1_agreement=1.0, tie_nats=0.1)
LIMITS: Mapping[Precision, ImageLimits] = {
    "fp32": ImageLimits(graph_cosine=0.99999, graph_relative_error=1e-4, top1_agreement=1.0, tie_nats=1e-3),
    "fp16": ImageLimits(graph_cosine=0.9999, graph_relative_error=1e-2, top1_agreement=1.0, tie_nats=0.02),
    "int8": ImageLimits(graph_cosine=0.99, graph_relative_error=0.5, top1_agreement=0.8, tie_nats=0.1),
}


@dataclass(frozen=True, kw_only=True)
class Original:
    """What the published module makes of the golden images or sentences, arrays by name."""

    inputs: Inputs
    outputs: Mapping[str, Array]


def observe(graph: ImageGraph, inputs: Inputs) -> Original:
    """Run the published module."""
    return Original(inputs=inputs, outputs=graph.reference(inputs))


def compare_folded(model: ir.Model, published: ir.Model, original: Original) -> FoldReport:
    """The folded graph in float32 against the published module, and the nodes of both.

    Raises:
        FidelityError: folding changed an output by more than FOLDED_ERROR of its largest value.
    """
    outputs = _run(model, original)
    error = max(relative_error(outputs[name], value) for name, value in original.outputs.items())
    if not error <= FOLDED_ERROR:
        raise FidelityError(
            f"folding changed the outputs by {error:.1e} of their largest value, at most {FOLDED_ERROR}"
        )
    return FoldReport(nodes_before=len(published.graph), nodes_after=len(model.graph), relative_error=error)


def verify_images(
    root: Path, images: tuple[bytes, ...], originals: Mapping[Role, Original], folds: Mapping[str, FoldReport]
) -> ImageFidelityReport:
    """Measure the bundle in `root`, whose manifest is written, write its golden.npz and hold it to its limits.

    Raises:
        FidelityError: a figure misses the limit of the bundle's precision.
    """
    bundle = open_bundle(root, check=False)
    golden = GoldenImages(
        images=images,
        texts=GOLDEN_TEXTS if "text" in originals else (),
        outputs={role: dict(original.outputs) for role, original in originals.items()},
        limits=LIMITS[bundle.manifest.precision],
    )
    write_golden_images(root / GOLDEN, golden)
    outputs = run_golden(bundle, open_engine("onnxruntime"), golden)
    require(image_checks(outputs, golden), str(root))
    return ImageFidelityReport(
        graphs=tuple(_graph_fidelity(role, outputs[role], originals[role]) for role in originals),
        n_images=len(images),
        top1_agreement=_top1(outputs, originals, golden.limits.tie_nats),
        folds=dict(folds),
    )


def check_npu(
    root: Path, target: NpuTarget, images: tuple[bytes, ...], originals: Mapping[Role, Original], compiler: str
) -> NpuSpec:
    """Run the compiled graphs of the bundle in `root` where the target can be checked, and hold them to their limits.

    Raises:
        FidelityError: a figure misses its limit.
    """
    bundle = open_bundle(root, check=False)
    limits = HEXAGON_LIMITS if target.engine == "qnn" else LIMITS[bundle.manifest.precision]
    compiled: dict[Role, Original] = {role: original for role, original in originals.items() if role != "text"}
    golden = GoldenImages(
        images=images,
        texts=(),
        outputs={role: dict(original.outputs) for role, original in compiled.items()},
        limits=limits,
    )
    outputs = run_golden(bundle, open_engine(target.engine), golden)
    require(image_checks(outputs, golden), f"{root}, on {target.checked_on}")
    return NpuSpec(
        target=target.name,
        engine=target.engine,
        compiler=compiler,
        checked_on=target.checked_on,
        cosine=min(_graph_fidelity(role, outputs[role], compiled[role]).cosine for role in compiled),
        top1_agreement=_top1(outputs, compiled, limits.tie_nats),
    )


def _graph_fidelity(role: Role, outputs: Mapping[str, Array], original: Original) -> GraphFidelity:
    return compare_outputs(role, [(outputs[name], value) for name, value in original.outputs.items()])


def _top1(
    outputs: Mapping[Role, Mapping[str, Array]], originals: Mapping[Role, Original], tie_nats: float
) -> float | None:
    if "classifier" not in originals:
        return None
    chosen = outputs["classifier"]["logits"].argmax(axis=-1)
    return share_agreeing(originals["classifier"].outputs["logits"], chosen, tie_nats)


def _run(model: ir.Model, original: Original) -> dict[str, Array]:
    """A graph in float32 on one image or sentence after the other, for its first axis may be fixed."""
    n_items = len(next(iter(original.inputs.values())))
    with TemporaryDirectory(prefix="edgevlm-") as scratch:
        file = emit.emit_graph(model, "classifier", Path(scratch))
        graph = open_engine("onnxruntime").open(Path(scratch) / file)
        runs = [graph.run({name: array[i : i + 1] for name, array in original.inputs.items()}) for i in range(n_items)]
    return {name: np.concatenate([run[name] for run in runs]) for name in original.outputs}
