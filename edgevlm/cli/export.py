"""export, pull: from a published checkpoint to a bundle. Needs the export extra, which has torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.catalog import ROOT, CatalogEntry, find_entry
from edgevlm.cli.flags import Verbose
from edgevlm.cli.output import emit_line, note, note_table
from edgevlm.cli.progress import watch
from edgevlm.home import bundle_folder
from edgevlm_runtime.errors import ExportError, InvalidOption
from edgevlm_runtime.kinds import CacheType, Precision

if TYPE_CHECKING:
    from edgevlm_export.checkpoint import HubSource
    from edgevlm_export.pipeline import ExportRequest
    from edgevlm_runtime.manifest import Manifest

_EXTRA = {
    *("huggingface_hub", "ml_dtypes", "onnx", "onnx_ir", "onnxscript", "safetensors", "torch"),
    *("optimum", "timm", "transformers"),
}

NameArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name that `edgevlm list` shows, or timm/NAME, a backbone of timm.")
]


@dataclass(frozen=True, kw_only=True)
class _Wish:
    """What the command line says about one export; options of some models only are off where not given."""

    source: Path | None
    tokenizer: Path | None
    vision_tower: Path | None
    labels: Path | None
    stage: int | None
    prompts: str | None
    calibration: Path | None
    revision: str | None
    out: Path
    precision: Precision
    kv_cache: CacheType | None
    openvino: bool
    npu: str | None
    force: bool


def export(
    name: NameArgument,
    out: Annotated[
        Path | None, typer.Argument(help="The bundle's folder [models/MODEL-PRECISION, or -TARGET, in EDGEVLM_HOME].")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="A checkpoint's file or folder, instead of a download.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json, instead of the checkpoint's.")] = None,
    vision_tower: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The image encoder, where the checkpoint has none [vision_tower]."),
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="The names of the classes, one a line.")] = None,
    stage: Annotated[
        int | None,
        typer.Option(min=1, max=4, help="The stage of TinyGPT-V's training, where its file's name is silent."),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(metavar="STYLE", help="How TinyGPT-V is asked: benchmark, inst or demo; chat or alignment."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images that int8 is fitted to [examples and drawn scenes].")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Another published revision than the catalog's.")] = None,
    fp32: Annotated[bool, typer.Option("--fp32", help="Weights in float32: largest, exact.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Weights in float16.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits: the default of the catalog.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Weights that write text in 4 bits: smallest, fastest.")] = False,
    kv_cache: Annotated[
        CacheType | None,
        typer.Option(help="What keys and values are kept as [float32 with --fp32, int8 with --int4, else float16]."),
    ] = None,
    openvino: Annotated[bool, typer.Option("--openvino", help="Write OpenVINO IR as well, for Intel's CPUs.")] = False,
    npu: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Compile for an NPU and check it: hexagon-v75, intel, ...")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace a bundle that is there.")] = False,
    verbose: Verbose = False,
) -> None:
    """Turn a checkpoint into a verified bundle.

    Prints the bundle's path. Without OUT it can be used by name: `-m moondream2` finds moondream2-int8, or the newest
    when there are several precisions; `-m moondream2-int8` names one, and a bundle for an NPU is only found by its
    full name, `-m fastvit-t8-hexagon-v75`.
    """
    entry = find_entry(name)
    precision = _precision(entry, {"fp32": fp32, "fp16": fp16, "int8": int8, "int4": int4}, npu)
    wish = _Wish(
        source=source,
        tokenizer=tokenizer,
        vision_tower=vision_tower,
        labels=labels,
        stage=stage,
        prompts=prompts,
        calibration=calibration,
        revision=revision,
        out=out or bundle_folder(entry.name, npu or precision),
        precision=precision,
        kv_cache=kv_cache,
        openvino=openvino,
        npu=npu,
        force=force,
    )
    with _export_extra():
        from edgevlm_export import pipeline

        _check(wish)
        with watch(verbose=verbose) as progress:
            bundle = pipeline.export(_request(entry, wish), progress)
    _report(bundle.manifest)
    emit_line(str(bundle.root))


def pull(name: NameArgument, verbose: Verbose = False) -> None:
    """Download a checkpoint ahead of `edgevlm export`.

    Prints its folder. An interrupted download resumes.
    """
    entry = find_entry(name)
    with _export_extra():
        from edgevlm_export.checkpoint import download
    checkpoint = _published(entry, None)
    for extra in (_published_tokenizer(entry), _published_tower(entry)):
        if extra is not None:
            download(extra)
    emit_line(str(download(checkpoint)))


def _precision(entry: CatalogEntry, flags: dict[Precision, bool], npu: str | None) -> Precision:
    chosen = [precision for precision, given in flags.items() if given]
    if len(chosen) > 1:
        raise InvalidOption(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    return chosen[0] if chosen else "int8" if npu else entry.precision


def _check(wish: _Wish) -> None:
    """Refuse, before anything is downloaded, what makes no sense.

    Raises:
        InvalidOption: options contradict each other, a target is unknown, or files are not there.
    """
    if wish.labels is not None and not wish.labels.is_file():
        raise InvalidOption(f"--labels {wish.labels}: there is no such file")
    if wish.vision_tower is not None and not wish.vision_tower.exists():
        raise InvalidOption(f"--vision-tower {wish.vision_tower}: there is no such folder; give one with a CLIP in it")
    if wish.calibration is not None and not wish.calibration.is_dir():
        raise InvalidOption(f"--calibration {wish.calibration}: there is no such folder; give one with images in it")
    if wish.calibration is not None and wish.precision != "int8":
        raise InvalidOption(f"--calibration is for int8, and --{wish.precision} needs none; leave one of them out")
    if wish.npu is not None:
        _check_npu(wish.npu, wish)


def _check_npu(npu: str, wish: _Wish) -> None:
    from edgevlm_export.npu import find_target

    target = find_target(npu)
    integers = target.engine == "qnn"
    if wish.precision == "fp32" or (integers and wish.precision != "int8"):
        numbers = "integers" if integers else "float16 or integers"
        raise InvalidOption(f"--npu {npu} computes in {numbers}; leave out --{wish.precision}")
    if wish.openvino and target.engine != "openvino":
        raise InvalidOption(f"--npu {npu} needs no OpenVINO IR; leave out --openvino, or export it by itself")


def _request(entry: CatalogEntry, wish: _Wish) -> ExportRequest:
    from edgevlm_export.pipeline import ExportRequest

    folder = wish.source or _shipped(entry)
    return ExportRequest(
        name=entry.name,
        family=entry.family,
        source=folder or _published(entry, wish.revision),
        out=wish.out,
        precision=wish.precision,
        kv_cache=wish.kv_cache,
        revision=wish.revision or entry.revision,
        variant=entry.variant,
        tokenizer=wish.tokenizer or (None if folder else _published_tokenizer(entry)),
        vision_tower=wish.vision_tower or _published_tower(entry),
        labels=wish.labels,
        stage=wish.stage,
        prompts=wish.prompts,
        calibration=wish.calibration,
        openvino=wish.openvino,
        npu=wish.npu,
        description=entry.description,
        license=entry.license,
        force=wish.force,
    )


def _report(manifest: Manifest) -> None:
    """How true the bundle is to its original, on stderr."""
    from edgevlm.cli.about import fidelity, npu_verdict

    for table in fidelity(manifest):
        note_table(table)
    if manifest.npu is not None:
        note(f"edgevlm: {npu_verdict(manifest.npu)}")


def _shipped(entry: CatalogEntry) -> Path | None:
    return ROOT.parent / entry.folder if entry.folder else None


def _published(entry: CatalogEntry, revision: str | None) -> HubSource:
    from edgevlm_export.checkpoint import HubSource

    if entry.gather is not None:
        raise ExportError(
            f"{entry.name} is not published in one place; give a folder with --from that holds {entry.gather}"
        )
    if entry.repo is None or entry.revision is None:
        raise ExportError(f"{entry.name} has no checkpoint to download; export it from a folder with --from")
    return HubSource(repo=entry.repo, revision=revision or entry.revision, files=entry.files)


def _published_tokenizer(entry: CatalogEntry) -> HubSource | None:
    from edgevlm_export.checkpoint import HubSource

    found = entry.tokenizer
    return HubSource(repo=found.repo, revision=found.revision, files=(found.file,)) if found else None


def _published_tower(entry: CatalogEntry) -> HubSource | None:
    from edgevlm_export.checkpoint import HubSource

    found = entry.vision_tower
    return HubSource(repo=found.repo, revision=found.revision, files=found.files) if found else None


@contextmanager
def _export_extra() -> Iterator[None]:
    """Import from edgevlm_export and use it inside.

    Raises:
        ExportError: a package of the export extra is not installed.
    """
    if not sys.stderr.isatty():
        # huggingface_hub would draw its progress bars into files.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        raise ExportError(f'{package} is not installed: pip install "edgevlm[export]"') from error
