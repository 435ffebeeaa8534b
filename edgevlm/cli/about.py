"""What a bundle's manifest says, in words and tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgevlm_runtime.bundle import Bundle
    from edgevlm_runtime.manifest import ImageSpec, Manifest, MatchSpec, NpuSpec, TextSpec


def summary(bundle: Bundle) -> list[tuple[str, str]]:
    """What the model is, what it does with images and texts, and where it comes from: names and values."""
    from edgevlm_runtime.tuning import find

    manifest = bundle.manifest
    source = manifest.provenance
    rows = [
        ("name", manifest.name),
        ("family", manifest.family),
        ("description", manifest.description),
        ("tasks", ", ".join(manifest.tasks)),
        ("precision", manifest.precision),
        ("size", f"{format_bytes(size_bytes(manifest))} in {len(manifest.files)} files"),
        ("path", str(bundle.root)),
        ("source", f"{source.source} @ {source.revision}"),
        ("license", source.license),
        ("exported", f"{source.date} with {', '.join(f'{tool} {version}' for tool, version in source.tools.items())}"),
    ]
    if tuned := find(bundle):
        rows.append(("tuned", str(tuned)))
    return [*rows, *_abilities(bundle), *manifest.notes.items()]


def graphs(manifest: Manifest) -> list[tuple[str, ...]]:
    """The graphs and their files, those of single engines too; header first."""
    rows: list[tuple[str, ...]] = [("GRAPH", "PRECISION", "FILE")]
    for role, graph in manifest.graphs.items():
        compiled = [f"{file} for {engine}" for engine, file in graph.compiled.items()]
        rows.append((role, graph.precision, ", ".join([graph.file, *compiled])))
    return rows


def fidelity(manifest: Manifest) -> list[tuple[tuple[str, ...], ...]]:
    """Tables of how true a bundle is to its original."""
    from edgevlm_runtime.fidelity import image_report_table, report_table

    tables = []
    if manifest.fidelity is not None:
        tables.append(report_table(manifest.fidelity))
    if manifest.image_fidelity is not None:
        tables.append(image_report_table(manifest.image_fidelity))
    return tables or [(("fidelity", "not measured"),)]


def npu_verdict(npu: NpuSpec) -> str:
    """What a bundle was compiled for, and how near it came to float32 where that was checked."""
    top1 = "" if npu.top1_agreement is None else f", the same first class on {npu.top1_agreement:.0%} of the images"
    cosine = f"cosine {npu.cosine:.4f} with float32"
    return f"{npu.target}, compiled by {npu.compiler}, checked on {npu.checked_on}: {cosine}{top1}"


def format_bytes(count: int) -> str:
    """A size in decimal units, as disks and downloads are labeled."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def format_parameters(count: int) -> str:
    """How many parameters a model has: 1.93B, 632M, 4.03M."""
    return f"{count / 1e9:.3g}B" if count >= 1e9 else f"{count / 1e6:.3g}M"


def size_bytes(manifest: Manifest) -> int:
    """How large a bundle is on the disk."""
    return sum(file.bytes for file in manifest.files.values())


def _abilities(bundle: Bundle) -> list[tuple[str, str]]:
    manifest = bundle.manifest
    rows = []
    if manifest.cache is not None:
        rows.append(("context", f"{manifest.cache.max_context} tokens, kept in {manifest.cache.dtype}"))
    if manifest.image is not None:
        rows.append(("image", _image(manifest.image)))
    if manifest.text is not None:
        rows.append(("text", _text(manifest.text)))
    if manifest.match is not None:
        rows.append(("match", _match(manifest.match)))
    if manifest.labels is not None:
        rows.append(("labels", _labels(bundle, manifest.labels)))
    if manifest.npu is not None:
        rows.append(("NPU", npu_verdict(manifest.npu)))
    return rows


def _image(spec: ImageSpec) -> str:
    """What happens to an image before a graph sees it."""
    side, resampled = spec.crop_px, spec.resample
    if spec.tiling is not None:
        fitted = f"crops of {side}x{side} ({resampled}), up to {spec.tiling.max_crops} of a large image"
    elif spec.center_crop is not None:
        fitted = f"shorter side to {spec.center_crop.shortest_px} ({resampled}), {side}x{side} in the middle"
    else:
        fitted = f"resized to {side}x{side} ({resampled})"
    return f"{fitted}; mean {_numbers(spec.mean)}, std {_numbers(spec.std)}"


def _numbers(values: tuple[float, ...]) -> str:
    """One number for three equal ones."""
    return " ".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _text(spec: TextSpec) -> str:
    lowered = ", in lower case" if spec.lowercase else ""
    return f"up to {spec.context} tokens{lowered}"


def _match(spec: MatchSpec) -> str:
    logit = f"{spec.scale:.4g} * cosine {spec.bias:+.4g}"
    return f'{spec.activation} of {logit}; labels are read as "{spec.template}"'


def _labels(bundle: Bundle, file: str) -> str:
    names = bundle.path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{len(names)}: {' | '.join(names[:3])}{' | ...' if len(names) > 3 else ''}"
