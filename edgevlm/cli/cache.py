"""cache ls, cache clear: the encoded images on disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from edgevlm.cli.about import format_bytes
from edgevlm.cli.flags import AsJson, Verbose
from edgevlm.cli.output import emit_json, emit_table, note

if TYPE_CHECKING:
    from edgevlm_runtime.image_file import StoredImage
    from edgevlm_runtime.image_store import Entry, ImageStore

app = typer.Typer(help="Show or clear the encoded images that commands keep on disk.")

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


@app.command("ls")
def list_images(json: AsJson = False, verbose: Verbose = False) -> None:
    """List the encoded images, the last used first."""
    store = _store()
    entries = store.entries()
    if json:
        emit_json(
            {"path": str(store.folder), "limit_bytes": store.limit_bytes, "images": [_record(each) for each in entries]}
        )
        return
    if entries:
        emit_table([("KEY", "MODEL", "IMAGE", "SIZE", "LAST USED"), *map(_row, entries)])
    total = sum(entry.bytes for entry in entries)
    note(f"edgevlm: {_count(entries)}, {format_bytes(total)} of {format_bytes(store.limit_bytes)}, in {store.folder}")


@app.command("clear")
def clear(verbose: Verbose = False) -> None:
    """Remove all encoded images."""
    store = _store()
    entries = store.entries()
    store.clear()
    note(f"edgevlm: removed {_count(entries)}, {format_bytes(sum(entry.bytes for entry in entries))}")


def _store() -> ImageStore:
    from edgevlm_runtime.image_store import ImageStore, limit_bytes, store_folder

    return ImageStore(store_folder(), limit_bytes())


def _record(entry: Entry) -> dict[str, object]:
    from edgevlm_runtime.records import write_record

    return {**write_record(entry), "age_s": round(_age_s(entry), 1)}


def _row(entry: Entry) -> tuple[str, ...]:
    image = entry.image
    model, size = ("damaged", "") if image is None else (f"{image.model} {image.precision}", _pixels(image))
    return entry.key[:12], model, size, format_bytes(entry.bytes), _format_age(_age_s(entry))


def _pixels(image: StoredImage) -> str:
    return f"{image.width} x {image.height}"


def _age_s(entry: Entry) -> float:
    return max(0.0, time.time() - entry.used_s)


def _format_age(seconds: float) -> str:
    for unit, name in _UNITS:
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name} ago"
    return "just now"


def _count(entries: list[Entry]) -> str:
    return f"{len(entries)} image{'' if len(entries) == 1 else 's'}"
