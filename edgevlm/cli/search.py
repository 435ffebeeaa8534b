"""search: the images of a folder that a text describes best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.flags import OpenFlags
from edgevlm.cli.output import emit_json, emit_line, note
from edgevlm.cli.progress import counting
from edgevlm.cli.session import check_words, open_image_model
from edgevlm_runtime.records import write_record

if TYPE_CHECKING:
    from edgevlm_runtime.search import SearchResult

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="Searched with all folders below it.")]
TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="What the images show.")]
TopK = Annotated[int, typer.Option("--top-k", "-k", help="How many images to print.")]


def search(folder: FolderArgument, text: TextArgument, flags: OpenFlags, top_k: TopK = 10) -> None:
    """Rank the images of a folder by how well a text describes them.

    Prints one image a line after its score, the best first. Vectors of images are kept in FOLDER/.edgevlm, so that
    the next search waits only for new and changed ones. What can not be read is skipped and named on stderr.
    """
    from edgevlm_runtime.search import find_images

    check_words(text, "text")
    model = open_image_model(flags, "search")
    files, _ = find_images(folder)
    with counting("search", len(files)) as done:
        result = model.search(folder, text, top_k=top_k, done=done)
    if flags.json:
        skipped = [each._asdict() for each in result.skipped]
        emit_json({"model": model.manifest.name, **write_record(result), "skipped": skipped})
    else:
        for hit in result.hits:
            emit_line(f"{hit.score:.4f}  {hit.path}")
    _tell_skipped(result)


def _tell_skipped(result: SearchResult) -> None:
    if not result.skipped:
        return
    note(f"edgevlm: {len(result.skipped)} of {result.n_images + len(result.skipped)} images could not be read:")
    for path, reason in result.skipped:
        note(f"  {path}: {reason}")
