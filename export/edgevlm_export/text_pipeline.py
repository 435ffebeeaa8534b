"""Steps 3 to 7 of models that generate text: traced without weights, which are read and written one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from edgevlm_export import calibrate, emit, openvino_ir, round_int4
from edgevlm_export.families.family import GraphRequest, Recipe
from edgevlm_export.int4 import NO_MATRICES, Int4Matrices
from edgevlm_export.passes import lower_cache, run_passes
from edgevlm_export.passes.attention import attentions
from edgevlm_export.quantize import NOT_CALIBRATED, Calibration, Outliers, graph_precision, policy_of
from edgevlm_export.request import ExportRequest, Progress, manifest_of
from edgevlm_export.staging import check_space
from edgevlm_export.trace import trace
from edgevlm_export.verify import N_PARTS, verify_export
from edgevlm_runtime.bundle import write_manifest
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.golden import GOLDEN
from edgevlm_runtime.manifest import CacheType, GraphSpec, Manifest, Precision, TensorSpec

# The smallest whose error is small beside that of the weights, see `passes.lower_cache`.
_CACHE_TYPES: dict[Precision, CacheType] = {"fp32": "float32", "fp16": "float16", "int8": "float16", "int4": "int8"}


def check_text_request(request: ExportRequest) -> None:
    """Refuse, before anything is read, what is for image models.

    Raises:
        InvalidOption: the request asks for it.
        ExportError: it needs OpenVINO, which is not installed.
    """
    if request.npu or request.calibration or request.labels:
        raise InvalidOption(f"{request.name} generates text: --npu, --calibration and --labels are not for it")
    if request.openvino:
        openvino_ir.version()  # raises now, not after all else, where it is not installed


def export_text(recipe: Recipe, request: ExportRequest, folder: Path, progress: Progress) -> None:
    """Write the bundle into `folder`; raises as `export`."""
    calibration = _calibrate(recipe, request, progress)
    # Not in `folder`, all of which becomes the bundle.
    with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        matrices = _round(recipe, request, calibration.outliers, Path(scratch), progress)
        graphs = _trace_all(recipe, request, (calibration, matrices), progress)
        n_copies = 2 if request.openvino else 1
        check_space(folder, n_copies * emit.planned_bytes([model for _, model in graphs], recipe, request.precision))
        manifest = _emit_all(graphs, recipe, request, folder, progress)
    progress.start("checksums")
    manifest = write_manifest(folder, replace(manifest, notes={**manifest.notes, **_notes(calibration.outliers)}))
    progress.start("verify", N_PARTS)
    report = verify_export(folder, recipe, progress.advance)
    write_manifest(folder, replace(manifest, fidelity=report, golden=GOLDEN))


def _cache_type(request: ExportRequest, recipe: Recipe) -> CacheType:
    """What is asked for, or the precision's default that the model's attention allows.

    Raises:
        InvalidOption: the model can not keep what is asked for.
    """
    if recipe.scales_cache:
        return request.kv_cache or _CACHE_TYPES[request.precision]
    if request.kv_cache == "int8":
        raise InvalidOption(f"{request.name} changes keys after the matrix that makes them: choose --kv-cache float16")
    return request.kv_cache or ("float32" if request.precision == "fp32" else "float16")


def _calibrate(recipe: Recipe, request: ExportRequest, progress: Progress) -> Calibration:
    floats = request.precision in ("fp32", "fp16")
    if floats and _cache_type(request, recipe) != "int8":
        return NOT_CALIBRATED
    progress.start("calibrate", calibrate.N_PARTS)
    found = calibrate.observe(recipe, progress.advance)
    return replace(found, outliers=NOT_CALIBRATED.outliers) if floats else found


def _round(
    recipe: Recipe, request: ExportRequest, outliers: Outliers, scratch: Path, progress: Progress
) -> Int4Matrices:
    if request.precision != "int4":
        return NO_MATRICES
    progress.start("round to int4", len(round_int4.int4_names(recipe)))
    return round_int4.round_matrices(recipe, outliers, scratch, progress.advance)


def _notes(outliers: Outliers) -> dict[str, str]:
    if not outliers:
        return {}
    n_channels = sum(len(channels) for channels in outliers.values())
    return {"in float32": f"{n_channels} outlier channels of {len(outliers)} matrices"}


def _trace_all(
    recipe: Recipe, request: ExportRequest, calibrated: tuple[Calibration, Int4Matrices], progress: Progress
) -> list[tuple[GraphRequest, ir.Model]]:
    progress.start("trace", len(recipe.graphs))
    cache_type = _cache_type(request, recipe)
    graphs = []
    for graph in recipe.graphs:
        model = trace(graph, recipe.build())
        policy = policy_of(graph, request.precision)
        graphs.append((graph, run_passes(model, graph, recipe.weights, policy, *calibrated, cache_type)))
        progress.advance()
    return graphs


def _emit_all(
    graphs: list[tuple[GraphRequest, ir.Model]],
    recipe: Recipe,
    request: ExportRequest,
    folder: Path,
    progress: Progress,
) -> Manifest:
    progress.start(f"write {request.precision}", sum(len(model.graph.initializers) for _, model in graphs))
    specs: dict[str, GraphSpec] = {
        graph.role: GraphSpec(
            file=emit.emit_graph(model, graph.role, folder, progress.advance),
            precision=graph_precision(graph, request.precision),
            inputs=graph.inputs,
            outputs=graph.outputs,
        )
        for graph, model in graphs
    }
    if request.openvino:
        progress.start("write OpenVINO IR", len(specs))
        specs = {role: _with_ir(spec, folder, progress) for role, spec in specs.items()}
    cache_type = _cache_type(request, recipe)
    specs["decoder"] = _with_cache(specs["decoder"], folder, cache_type)
    manifest = manifest_of(request, recipe.family, recipe.parts, specs)
    return replace(
        manifest,
        cache=manifest.cache and replace(manifest.cache, dtype=cache_type),
        tokenizer=emit.emit_tokenizer(recipe.tokenizer, folder),
        embedding=emit.emit_embedding(recipe, folder, request.precision),
    )


def _with_ir(spec: GraphSpec, folder: Path, progress: Progress) -> GraphSpec:
    file = openvino_ir.emit_ir(spec.file, folder, spec.precision)
    progress.advance()
    return replace(spec, compiled={"openvino": file})


def _with_cache(spec: GraphSpec, folder: Path, cache_type: CacheType) -> GraphSpec:
    """The graph with keys and values of that type, where it has any; its weights stay as they are."""
    model = ir.load(folder / spec.file)
    if cache_type == "float32" or not attentions(model.graph):
        return spec
    ir.save(lower_cache.run(model, cache_type), folder / spec.file)
    return replace(
        spec,
        inputs=_retyped(spec.inputs, model.graph.inputs),
        outputs=_retyped(spec.outputs, model.graph.outputs),
    )


def _retyped(specs: tuple[TensorSpec, ...], values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """The specs in the types that inputs or outputs of a graph have."""
    pairs = zip(specs, values, strict=True)
    return tuple(replace(spec, dtype=value.dtype.numpy().name) for spec, value in pairs if value.dtype is not None)
