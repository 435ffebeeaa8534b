"""list, show, rm, verify: which models there are, and what they are."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from edgevlm.catalog import canonical, load_catalog
from edgevlm.cli.about import fidelity, format_bytes, format_parameters, graphs, size_bytes, summary
from edgevlm.cli.flags import AsJson, EngineName, Threads, Verbose
from edgevlm.cli.output import emit_json, emit_line, emit_table, note
from edgevlm.home import BUILT_IN, BUILT_IN_PATH, installed, matches, models_folder, resolve
from edgevlm_runtime.errors import BundleError, InvalidOption, ModelNotFound
from edgevlm_runtime.kinds import Precision

if TYPE_CHECKING:
    from edgevlm_runtime.fidelity import Check

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="A bundle's path or name.")]


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One line of `list`; `size` is a bundle's size on disk, or how many parameters an entry's checkpoint has."""

    name: str
    state: str
    precision: str
    size: str
    license: str
    description: str


def list_models(json: AsJson = False, verbose: Verbose = False) -> None:
    """List models: built in, installed, ready to export."""
    rows = [_bundle_row(BUILT_IN, BUILT_IN_PATH, "built-in")]
    rows += [_bundle_row(name, path, "installed") for name, path in installed().items()]
    rows += _catalog_rows({row.name for row in rows})
    if json:
        emit_json({"models": [vars(row) for row in rows]})
        return
    emit_table([("NAME", "STATE", "PRECISION", "SIZE", "LICENSE", "DESCRIPTION"), *map(_cells, rows)], cut=True)


def show(model: ModelArgument, json: AsJson = False, verbose: Verbose = False) -> None:
    """Show what a bundle is, and how true to its original."""
    from edgevlm_runtime.bundle import open_bundle
    from edgevlm_runtime.records import write_record

    bundle = open_bundle(resolve(model), check=False)
    if json:
        emit_json({"path": str(bundle.root), **write_record(bundle.manifest)})
        return
    emit_table(summary(bundle))
    for table in (graphs(bundle.manifest), *fidelity(bundle.manifest)):
        emit_line()
        emit_table(table)


def verify(
    model: ModelArgument,
    threads: Threads = None,
    engine: EngineName = "auto",
    json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Check that a bundle is whole and answers as it should.

    Repeats the golden test of its export with this machine's engine; exit code 5 if it fails.
    """
    from edgevlm_runtime.options import LoadOptions
    from edgevlm_runtime.records import write_record
    from edgevlm_runtime.verify import verify_bundle

    path = resolve(model)
    result = verify_bundle(path, LoadOptions(engine=engine, threads=threads))
    if json:
        emit_json({"path": str(path), **write_record(result)})
        return
    emit_table(
        [
            ("CHECK", "MEASURED", "LIMIT"),
            *((check.what, f"{check.value:.3g}", _limit(check)) for check in result.checks),
        ]
    )
    note(f"edgevlm: {path} answers as its original ({result.n_files} files, engine {result.engine})")


def remove(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of installed bundles.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    verbose: Verbose = False,
) -> None:
    """Remove bundles from EDGEVLM_HOME."""
    for path in [_removable(model) for model in models]:
        if not yes and not _confirmed(path):
            note(f"kept {path}")
            continue
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
        note(f"removed {path}")


def _bundle_row(name: str, path: Path, state: str) -> _Row:
    from edgevlm_runtime.bundle import open_bundle

    try:
        manifest = open_bundle(path, check=False).manifest
    except BundleError as error:
        return _Row(name=name, state="damaged", precision="", size="", license="", description=str(error))
    return _Row(
        name=name,
        state=state,
        precision=f"{manifest.precision} {manifest.npu.target}" if manifest.npu else manifest.precision,
        size=format_bytes(size_bytes(manifest)),
        license=manifest.provenance.license,
        description=manifest.description,
    )


def _catalog_rows(names: set[str]) -> list[_Row]:
    exported = names | {name.removesuffix(f"-{each}") for name in names for each in get_args(Precision)}
    return [
        _Row(
            name=entry.name,
            state="not exported",
            precision="",
            size=format_parameters(entry.parameters) if entry.parameters else "",
            license=entry.license,
            description=entry.description,
        )
        for entry in load_catalog().values()
        if entry.name not in exported
    ]


def _limit(check: Check) -> str:
    return f"{'>=' if check.at_least else '<='} {check.limit:g}"


def _cells(row: _Row) -> tuple[str, ...]:
    return row.name, row.state, row.precision, row.size, row.license, row.description


def _removable(model: str) -> Path:
    if canonical(model) == BUILT_IN:
        raise InvalidOption(f"{BUILT_IN} is built in and can not be removed")
    found = matches(model)
    if not found:
        raise ModelNotFound(f"no model {model!r} in {models_folder()}, and rm removes only what is there")
    if len(found) > 1:
        raise InvalidOption(f"{model} may be {' or '.join(path.name for path in found)}; name one")
    return found[0]


def _confirmed(path: Path) -> bool:
    if not sys.stdin.isatty():
        raise InvalidOption(f"rm asks before it removes {path}, and stdin is no terminal; give --yes")
    return typer.confirm(f"remove {path}?", err=True)
