"""Steps 3 to 7 of models that generate text: traced without weights, which are read and written one at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx_ir as ir

from edgevlm_export import calibrate, emit, openvino_ir, round_int4
from edgevlm_export.families.family import GraphRequest, Recipe
from edgevlm_export.int4 import NO_MATRICES, Int4Matrices
from edgevlm_export.passes import run_passes
from edgevlm_export.quantize import NO_OUTLIERS, Outliers, graph_precision, policy_of
from edgevlm_export.request import ExportRequest, Progress, manifest_of
from edgevlm_export.staging import check_space
from edgevlm_export.trace import trace
from edgevlm_export.verify import N_PARTS, verify_export
from edgevlm_runtime.bundle import write_manifest
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.golden import GOLDEN
from edgevlm_runtime.manifest import GraphSpec, Manifest


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
    outliers = _calibrate(recipe, request, progress)
    # Not in `folder`, all of which becomes the bundle.
    with TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent, ignore_cleanup_errors=True) as scratch:
        matrices = _round(recipe, request, outliers, Path(scratch), progress)
        graphs = _trace_all(recipe, request, (outliers, matrices), progress)
        n_copies = 2 if request.openvino else 1
        check_space(folder, n_copies * emit.planned_bytes([model for _, model in graphs], recipe, request.precision))
        manifest = _emit_all(graphs, recipe, request, folder, progress)
    progress.start("checksums")
    manifest = write_manifest(folder, replace(manifest, notes=_notes(outliers)))
    progress.start("verify", N_PARTS)
    report = verify_export(folder, recipe, progress.advance)
    write_manifest(folder, replace(manifest, fidelity=report, golden=GOLDEN))


def _calibrate(recipe: Recipe, request: ExportRequest, progress: Progress) -> Outliers:
    if request.precision not in ("int8", "int4"):
        return NO_OUTLIERS
    progress.start("calibrate", calibrate.N_PARTS)
    return calibrate.find_outliers(recipe, progress.advance)


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
    recipe: Recipe, request: ExportRequest, calibrated: tuple[Outliers, Int4Matrices], progress: Progress
) -> list[tuple[GraphRequest, ir.Model]]:
    progress.start("trace", len(recipe.graphs))
    graphs = []
    for graph in recipe.graphs:
        model = trace(graph, recipe.build())
        policy = policy_of(graph, request.precision)
        graphs.append((graph, run_passes(model, graph, recipe.weights, policy, *calibrated)))
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
    return replace(
        manifest_of(request, recipe.family, recipe.parts, specs),
        tokenizer=emit.emit_tokenizer(recipe.tokenizer, folder),
        embedding=emit.emit_embedding(recipe, folder, request.precision),
    )


def _with_ir(spec: GraphSpec, folder: Path, progress: Progress) -> GraphSpec:
    file = openvino_ir.emit_ir(spec.file, folder, spec.precision)
    progress.advance()
    return replace(spec, compiled={"openvino": file})
