"""classify: which classes an image is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.flags import OpenFlags
from edgevlm.cli.output import emit_json, emit_line
from edgevlm.cli.progress import counting
from edgevlm.cli.sentence import class_name
from edgevlm.cli.session import check_images, note_timings, one_record, open_image_model, read_image
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.records import write_record

if TYPE_CHECKING:
    from edgevlm_runtime.labels import Classification

ImagesArgument = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Image files; - is stdin.")]
TopK = Annotated[int, typer.Option("--top-k", "-k", help="How many labels to print.")]
Labels = Annotated[str | None, typer.Option(metavar='"A, B"', help="What to choose among, where the model reads text.")]
LabelsFile = Annotated[Path | None, typer.Option(help="The same from a file, one label a line.")]
Template = Annotated[
    str | None, typer.Option(help='What makes a text of a label, its {}, such as "a photo of a {}." [the model\'s].')
]


def classify(
    images: ImagesArgument,
    flags: OpenFlags,
    top_k: TopK = 5,
    labels: Labels = None,
    labels_file: LabelsFile = None,
    template: Template = None,
) -> None:
    """Tell which classes an image is of.

    Prints one label a line after its probability, the likeliest first; of several images, each below its name.
    """
    check_images(images)
    names = _labels(labels, labels_file)
    model = open_image_model(flags, "classify")
    with counting("classify", len(images)) as done:
        sources = [read_image(image) for image in images]
        found = model.classify_many(sources, top_k=top_k, labels=names, template=template, done=done)
    if flags.json:
        name = model.manifest.name
        emit_json(one_record(images, [{"model": name, **write_record(each)} for each in found]))
    else:
        _print(images, found)
    if flags.verbose:
        note_timings(found)


def _labels(given: str | None, file: Path | None) -> tuple[str, ...] | None:
    """The labels to choose among; None where none are given.

    Raises:
        InvalidOption: they are given twice, are blank, or the file can not be read.
    """
    if given is not None and file is not None:
        raise InvalidOption("--labels and --labels-file exclude each other")
    if given is not None:
        found, where = given.split(","), "--labels"
    elif file is not None:
        found, where = _read_lines(file), f"--labels-file {file}"
    else:
        return None
    labels = tuple(label.strip() for label in found if label.strip())
    if not labels:
        raise InvalidOption(f'{where}: there are no labels in it; give some, such as --labels "a cat, a dog"')
    return labels


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InvalidOption(f"--labels-file {file}: can not be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InvalidOption(f"--labels-file {file}: not a text file in UTF-8") from error


def _print(images: Sequence[str], found: Sequence[Classification]) -> None:
    for image, each in zip(images, found, strict=True):
        if len(images) > 1:
            emit_line(f"{image}:")
        for label in each.labels:
            emit_line(f"{label.probability:.4f}  {class_name(label)}")
