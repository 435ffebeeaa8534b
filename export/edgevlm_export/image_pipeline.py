"""Steps 3 to 7 of image models: traced with their weights, folded, quantized on images, compiled, verified.

Each graph goes its way alone, so that the weights of two are never held at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from edgevlm_export import emit
from edgevlm_export.families.family import ImageGraph, ImageRecipe
from edgevlm_export.image_fidelity import INT8_TARGET, Original, check_npu, compare_folded, observe, verify_images
from edgevlm_export.npu import NpuTarget, compile_graph, find_target
from edgevlm_export.openvino_ir import emit_ir
from edgevlm_export.passes import halve_weights
from edgevlm_export.request import ExportRequest, Progress, manifest_of
from edgevlm_export.samples import Samples
from edgevlm_export.staging import check_space
from edgevlm_export.static_int8 import quantize_static
from edgevlm_export.text_int8 import quantize_text
from edgevlm_runtime.bundle import write_manifest
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.golden import GOLDEN
from edgevlm_runtime.manifest import FoldReport, GraphSpec, Manifest, Role, TensorSpec

_JUDGED = 8  # so many of the calibration inputs decide which layers int8 hurts, since each attempt runs them all


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One export: what all of its graphs have in common."""

    request: ExportRequest
    samples: Samples
    target: NpuTarget | None
    folder: Path
    progress: Progress

    def start(self, step: str, graph: ImageGraph) -> None:
        self.progress.start(f"{step} {graph.role}")

    def compiles(self, graph: ImageGraph) -> bool:
        """Texts are read on the CPU: their lengths differ, and they are few."""
        return self.target is not None and graph.role != "text"


@dataclass(frozen=True, kw_only=True)
class _Exported:
    """One graph in the bundle. `kept` are the layers that stay in float32 although the precision is int8."""

    graph: ImageGraph
    spec: GraphSpec
    original: Original
    fold: FoldReport | None
    kept: tuple[str, ...] = ()
    compiler: str | None = None


def check_image_request(request: ExportRequest) -> None:
    """Refuse, before anything is read, precisions that image models or NPUs do not have.

    Raises:
        InvalidOption: the request asks for one, or for an unknown NPU.
    """
    if request.precision == "int4":
        raise InvalidOption(f"{request.name}: int4 is for models that generate text; choose --int8")
    if request.kv_cache:
        raise InvalidOption(f"{request.name}: --kv-cache is for models that generate text; leave it out")
    if request.npu and find_target(request.npu).engine == "qnn" and request.precision != "int8":
        raise InvalidOption(f"--npu {request.npu} computes in integers; leave out --{request.precision}")


def export_images(recipe: ImageRecipe, request: ExportRequest, folder: Path, progress: Progress) -> None:
    """Write the bundle into `folder`; raises as `export`."""
    job = _Job(
        request=request,
        samples=Samples.collect(recipe, request.calibration),
        target=find_target(request.npu) if request.npu else None,
        folder=folder,
        progress=progress,
    )
    exported = [_export_graph(graph, job) for graph in recipe.graphs]
    manifest = write_manifest(folder, _manifest(recipe, exported, job))
    progress.start("verify")
    originals: dict[Role, Original] = {each.graph.role: each.original for each in exported}
    folds: dict[str, FoldReport] = {each.graph.role: each.fold for each in exported if each.fold is not None}
    report = verify_images(folder, job.samples.golden, originals, folds)
    if job.target is not None:
        progress.start(f"check on {job.target.checked_on}")
        compilers = {each.compiler for each in exported if each.compiler}
        npu = check_npu(folder, job.target, job.samples.golden, originals, ", ".join(sorted(compilers)))
        manifest = replace(manifest, npu=npu)
    write_manifest(folder, replace(manifest, image_fidelity=report, golden=GOLDEN))


def _export_graph(graph: ImageGraph, job: _Job) -> _Exported:
    job.start("trace", graph)
    model = graph.trace(job.compiles(graph))
    check_space(job.folder, emit.weight_bytes(model))
    original = observe(graph, job.samples.to_verify(graph))
    published = graph.trace_published() if graph.trace_published is not None else None
    fold = compare_folded(model, published, original) if published is not None else None
    if job.compiles(graph):
        return replace(_compile(graph, model, original, job), fold=fold)
    model, kept = _CONVERT[job.request.precision](graph, model, job)
    file = emit.emit_graph(model, graph.role, job.folder)
    compiled = {"openvino": emit_ir(file, job.folder)} if job.request.openvino else {}
    spec = _spec(graph, file, job, compiled, fixed=False)
    return _Exported(graph=graph, spec=spec, original=original, fold=fold, kept=kept)


def _compile(graph: ImageGraph, model: ir.Model, original: Original, job: _Job) -> _Exported:
    """A graph of fixed shapes for the chip, and beside it what it was compiled from."""
    assert job.target is not None
    job.start(f"compile for {job.target.name}:", graph)
    kept: tuple[str, ...] = ()
    if job.target.engine != "qnn":
        model, kept = _CONVERT[job.request.precision](graph, model, job)
    result = compile_graph(job.target, model, job.samples.to_calibrate(graph), job.folder, graph.role)
    spec = _spec(graph, result.file, job, result.compiled, fixed=True)
    return _Exported(graph=graph, spec=spec, original=original, fold=None, kept=kept, compiler=result.compiler)


def _to_int8(graph: ImageGraph, model: ir.Model, job: _Job) -> tuple[ir.Model, tuple[str, ...]]:
    if graph.role == "text":
        job.start("quantize", graph)
        return quantize_text(model), ()
    inputs = job.samples.to_calibrate(graph)
    job.progress.start(f"quantize {graph.role}", len(inputs))
    quantized = quantize_static(model, inputs, inputs[:_JUDGED], INT8_TARGET, job.progress.advance)
    return quantized.model, quantized.kept


def _to_fp16(graph: ImageGraph, model: ir.Model, job: _Job) -> tuple[ir.Model, tuple[str, ...]]:
    return halve_weights.run(model), ()


def _to_fp32(graph: ImageGraph, model: ir.Model, job: _Job) -> tuple[ir.Model, tuple[str, ...]]:
    return model, ()


_CONVERT: dict[str, Callable[[ImageGraph, ir.Model, _Job], tuple[ir.Model, tuple[str, ...]]]] = {
    "fp32": _to_fp32,
    "fp16": _to_fp16,
    "int8": _to_int8,
}


def _spec(graph: ImageGraph, file: str, job: _Job, compiled: dict[str, str], *, fixed: bool) -> GraphSpec:
    return GraphSpec(
        file=file,
        precision=job.request.precision,
        inputs=_first_axis(graph.inputs, fixed=fixed),
        outputs=_first_axis(graph.outputs, fixed=fixed),
        compiled=compiled,
    )


def _first_axis(specs: tuple[TensorSpec, ...], *, fixed: bool) -> tuple[TensorSpec, ...]:
    return tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in specs) if fixed else specs


def _manifest(recipe: ImageRecipe, exported: list[_Exported], job: _Job) -> Manifest:
    graphs: dict[str, GraphSpec] = {each.graph.role: each.spec for each in exported}
    manifest = manifest_of(job.request, recipe.family, recipe.parts, graphs)
    return replace(
        manifest,
        tokenizer=emit.emit_tokenizer(recipe.tokenizer, job.folder),
        labels=emit.emit_labels(recipe.labels, job.folder),
        notes={**manifest.notes, **_kept_note(exported)},
    )


def _kept_note(exported: list[_Exported]) -> dict[str, str]:
    kept = [name for each in exported for name in each.kept]
    return {"in float32": f"{len(kept)} layers: {', '.join(kept)}"} if kept else {}
