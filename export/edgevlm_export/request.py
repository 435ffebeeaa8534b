"""What is asked of an export, and whom it tells of its progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgevlm_export import emit
from edgevlm_export.checkpoint import HubSource, download
from edgevlm_export.families.family import ManifestParts, ReadOptions
from edgevlm_runtime.manifest import SCHEMA_VERSION, CacheType, GraphSpec, Manifest, Precision, Provenance


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What to export and where to.

    `source` is a folder or file in the family's layout, or a repository of the hub; `revision` says which published
    one a folder holds, where known; `variant` which model of the family it is. `tokenizer` replaces the tokenizer.json
    of the source, `labels` the names of its classes (a line each).
    `vision_tower`, `stage` and `prompts` are as in `ReadOptions`. `kv_cache` is what keys and values are kept as by
    models that generate text; None is the default of the precision. `openvino` writes OpenVINO IR as well. Of image
    models, `calibration` is a folder of images to calibrate on; `npu` names the chip to compile for.
    """

    name: str
    family: str
    source: Path | HubSource
    out: Path
    precision: Precision
    kv_cache: CacheType | None = None
    revision: str | None = None
    variant: str | None = None
    tokenizer: Path | HubSource | None = None
    labels: Path | None = None
    vision_tower: Path | HubSource | None = None
    stage: int | None = None
    prompts: str | None = None
    calibration: Path | None = None
    openvino: bool = False
    npu: str | None = None
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


def local_path(source: Path | HubSource) -> Path:
    """Where a source lies on this machine; downloads what is on the hub.

    Raises:
        CheckpointError: it can not be downloaded.
    """
    return download(source) if isinstance(source, HubSource) else source


def read_options(request: ExportRequest) -> ReadOptions:
    """What a family is told of the request, the tokenizer downloaded.

    Raises:
        CheckpointError: the tokenizer can not be downloaded.
    """
    tokenizer = request.tokenizer
    if isinstance(tokenizer, HubSource):
        tokenizer = download(tokenizer) / tokenizer.files[0]
    return ReadOptions(
        revision=revision_of(request),
        variant=request.variant,
        tokenizer=tokenizer,
        labels=request.labels,
        vision_tower=request.vision_tower,
        stage=request.stage,
        prompts=request.prompts,
    )


def revision_of(request: ExportRequest) -> str | None:
    """The published revision, where known."""
    return request.source.revision if isinstance(request.source, HubSource) else request.revision


def manifest_of(request: ExportRequest, family: str, parts: ManifestParts, graphs: dict[str, GraphSpec]) -> Manifest:
    """The manifest of a request's bundle, still without its files and what lies in them."""
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=request.name,
        family=family,
        description=request.description,
        precision=request.precision,
        tasks=parts.tasks,
        graphs=graphs,
        files={},
        provenance=_provenance(request),
        image=parts.image,
        cache=parts.cache,
        fusion=parts.fusion,
        prompt=parts.prompt,
        region=parts.region,
        sampling=parts.sampling,
        text=parts.text,
        match=parts.match,
        notes=parts.notes,
    )


def _provenance(request: ExportRequest) -> Provenance:
    # Of a folder only its name: a bundle is shared, a path on someone's disk is not.
    source = request.source.repo if isinstance(request.source, HubSource) else request.source.resolve().name
    return emit.provenance(source=source, revision=revision_of(request) or "unknown", license=request.license)
