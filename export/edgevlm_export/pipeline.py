"""The export: seven steps in order, from a checkpoint to a verified bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import onnx_ir as ir

from edgevlm_export import calibrate, emit
from edgevlm_export.checkpoint import HubSource, download, open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import GraphRequest, Recipe
from edgevlm_export.passes import run_passes
from edgevlm_export.quantize import NO_OUTLIERS, Outliers, policy_of
from edgevlm_export.staging import check_space, staging
from edgevlm_export.trace import trace
from edgevlm_export.verify import N_PARTS, verify_export
from edgevlm_runtime.bundle import Bundle, open_bundle, write_manifest
from edgevlm_runtime.golden import GOLDEN
from edgevlm_runtime.manifest import SCHEMA_VERSION, GraphSpec, Manifest, Precision


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export and where to.

    `source` is a folder or file in the family's layout, or a repository of the hub; `revision` says which published
    one a folder holds, where known. `tokenizer` replaces the tokenizer.json of the source.
    """

    name: str
    family: str
    source: Path | HubSource
    out: Path
    precision: Precision
    revision: str | None = None
    tokenizer: Path | HubSource | None = None
    description: str = ""
    license: str = "unknown"
    force: bool = False


class Progress(Protocol):
    """Told of each step as the export goes on."""

    def start(self, step: str, total: int | None = None) -> None:
        """A step begins; total is how often it will advance, None where that is not known."""
        ...

    def advance(self) -> None:
        """One more part of the step is done."""
        ...


class Silent:
    """Progress that nobody watches."""

    def start(self, step: str, total: int | None = None) -> None:
        """See `Progress`."""

    def advance(self) -> None:
        """See `Progress`."""


_SILENT = Silent()


def export(request: ExportRequest, progress: Progress = _SILENT) -> Bundle:
    """Write the bundle that the request asks for; on any failure nothing is left behind.

    Raises:
        ExportError: the output exists, the disk is full, or a module can not be traced.
        CheckpointError: the checkpoint can not be found or read, or does not fit the family.
        FidelityError: the bundle does not answer as the checkpoint does.
    """
    with staging(request.out, force=request.force) as folder:
        progress.start("open checkpoint")
        checkpoint = open_checkpoint(_local(request.source))
        recipe = FAMILIES[request.family].read(
            checkpoint, revision=_revision(request), tokenizer=_local_tokenizer(request.tokenizer)
        )
        outliers = _calibrate(recipe, request, progress)
        graphs = _trace_all(recipe, request, outliers, progress)
        check_space(folder, emit.planned_bytes([model for _, model in graphs], recipe, request.precision))
        manifest = _emit_all(graphs, recipe, request, folder, progress)
        emit.emit_license(checkpoint.folder, folder)
        progress.start("checksums")
        manifest = write_manifest(folder, replace(manifest, notes=_notes(outliers)))
        progress.start("verify", N_PARTS)
        report = verify_export(folder, recipe, progress.advance)
        write_manifest(folder, replace(manifest, fidelity=report, golden=GOLDEN))
    return open_bundle(request.out, check=False)


def _local(source: Path | HubSource) -> Path:
    return download(source) if isinstance(source, HubSource) else source


def _local_tokenizer(tokenizer: Path | HubSource | None) -> Path | None:
    if isinstance(tokenizer, HubSource):
        return download(tokenizer) / tokenizer.files[0]
    return tokenizer


def _revision(request: ExportRequest) -> str | None:
    return request.source.revision if isinstance(request.source, HubSource) else request.revision


def _calibrate(recipe: Recipe, request: ExportRequest, progress: Progress) -> Outliers:
    if request.precision != "int8":
        return NO_OUTLIERS
    progress.start("calibrate", calibrate.N_PARTS)
    return calibrate.find_outliers(recipe, progress.advance)


def _notes(outliers: Outliers) -> dict[str, str]:
    if not outliers:
        return {}
    n_channels = sum(len(channels) for channels in outliers.values())
    return {"in float32": f"{n_channels} outlier channels of {len(outliers)} matrices"}


def _trace_all(
    recipe: Recipe, request: ExportRequest, outliers: Outliers, progress: Progress
) -> list[tuple[GraphRequest, ir.Model]]:
    progress.start("trace", len(recipe.graphs))
    graphs = []
    for graph in recipe.graphs:
        model = trace(graph, recipe.build())
        policy = policy_of(graph, request.precision)
        graphs.append((graph, run_passes(model, graph, recipe.weights, policy, outliers)))
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
        graph.role: emit.emit_graph(model, graph, folder, request.precision, progress.advance)
        for graph, model in graphs
    }
    parts = recipe.parts
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=request.name,
        family=recipe.family,
        description=request.description,
        precision=request.precision,
        tasks=parts.tasks,
        graphs=specs,
        files={},
        provenance=emit.provenance(
            source=_source_name(request.source), revision=_revision(request) or "unknown", license=request.license
        ),
        image=parts.image,
        cache=parts.cache,
        prompt=parts.prompt,
        region=parts.region,
        sampling=parts.sampling,
        tokenizer=emit.emit_tokenizer(recipe, folder),
        embedding=emit.emit_embedding(recipe, folder, request.precision),
    )


def _source_name(source: Path | HubSource) -> str:
    # Of a folder only its name: a bundle is shared, a path on someone's disk is not.
    return source.repo if isinstance(source, HubSource) else source.resolve().name
