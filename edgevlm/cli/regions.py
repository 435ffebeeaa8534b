"""detect, point: where something is in an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.flags import ModelFlags
from edgevlm.cli.output import emit_line, note
from edgevlm.cli.session import ImageArgument, Session, check_words, read_image
from edgevlm_runtime.records import write_record

if TYPE_CHECKING:
    from edgevlm_runtime.answer import Box, Detections, Point, Points
    from edgevlm_runtime.image import ImageSource

NameArgument = Annotated[str, typer.Argument(metavar="OBJECT", help="What to look for, in a word or a few.")]
Draw = Annotated[Path | None, typer.Option(metavar="OUT", help="Draw them on the image and write it to this file.")]


def detect(image: ImageArgument, name: NameArgument, flags: ModelFlags, draw: Draw = None) -> None:
    """Find all objects of a kind.

    Prints one box a line, x_min y_min x_max y_max, as fractions of the upright image.
    """
    source = _prepare(image, name, draw)
    with Session(flags) as session:
        found = session.model.detect(source, name, session.options)
        _print(session, found, found.objects, as_json=flags.json)
    _draw(source, found.objects, name, draw)


def point(image: ImageArgument, name: NameArgument, flags: ModelFlags, draw: Draw = None) -> None:
    """Point at all objects of a kind.

    Prints one point a line, x y, as fractions of the upright image.
    """
    source = _prepare(image, name, draw)
    with Session(flags) as session:
        found = session.model.point(source, name, session.options)
        _print(session, found, found.points, as_json=flags.json)
    _draw(source, found.points, name, draw)


def _prepare(image: str, name: str, draw: Path | None) -> ImageSource:
    check_words(name, "object's name")
    if draw is not None:
        from edgevlm.draw import check_target

        check_target(draw, image)
    return read_image(image)


def _print(session: Session, found: Detections | Points, places: Sequence[Box | Point], *, as_json: bool) -> None:
    session.introduce()
    if as_json:
        session.print_json(session.as_record(found))
    else:
        for place in places:
            emit_line(" ".join(f"{value:.4f}" for value in write_record(place).values()))
        if not places:
            note("edgevlm: nothing of that name was found")
    session.print_costs(found)


def _draw(source: ImageSource, places: Sequence[Box | Point], name: str, out: Path | None) -> None:
    if out is None:
        return
    from edgevlm.draw import draw_places, save
    from edgevlm_runtime.image import load_image

    save(draw_places(load_image(source), places, name), out)
    note(f"edgevlm: drawn on {out}")
