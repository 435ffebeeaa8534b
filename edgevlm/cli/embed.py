"""embed: the vectors of images and texts."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.flags import OpenFlags
from edgevlm.cli.output import emit_json, emit_line, note
from edgevlm.cli.progress import counting
from edgevlm.cli.session import STDIN, check_images, check_words, open_image_model, read_image
from edgevlm_runtime.errors import BadImage, EdgeVLMError, InvalidOption

if TYPE_CHECKING:
    from edgevlm_runtime.engines import FloatArray
    from edgevlm_runtime.model import Model

InputsArgument = Annotated[
    list[str], typer.Argument(metavar="IMAGE_OR_TEXT...", help="Files and - (stdin) are images, all else is text.")
]
Out = Annotated[
    Path | None, typer.Option(metavar="X.npy", help="Save them as float32 (inputs, dim), of one input (dim,).")
]


def embed(inputs: InputsArgument, flags: OpenFlags, out: Out = None) -> None:
    """Turn images, and texts where the model reads them, into vectors.

    Prints one vector a line, unless they are saved. Those of models that compare images with texts have length 1, so
    that their products are cosines.
    """
    check_images(inputs)
    for given in inputs:
        check_words(given, "text")
    if out is not None:
        _check_out(out, inputs)
    model = open_image_model(flags, "embed")
    vectors = _embed(model, inputs)
    if out is not None:
        saved = vectors[0] if len(inputs) == 1 else vectors
        _save(saved, out)
        note(f"edgevlm: saved as {out}, {saved.dtype} {saved.shape}")
    if flags.json:
        where = {"embeddings": [_digits(row) for row in vectors]} if out is None else {"out": str(out)}
        emit_json({"model": model.manifest.name, "inputs": inputs, "dim": vectors.shape[1], **where})
    elif out is None:
        for row in vectors:
            emit_line(" ".join(map(str, _digits(row))))


def _embed(model: Model, inputs: Sequence[str]) -> FloatArray:
    """The vectors (inputs, dim) float32 of images and texts, in their order.

    Raises:
        BadImage: one can not be read, or is no file where the model reads no texts.
    """
    import numpy as np

    are_images = [_is_image(given) for given in inputs]
    images = [given for given, is_image in zip(inputs, are_images, strict=True) if is_image]
    texts = [given for given, is_image in zip(inputs, are_images, strict=True) if not is_image]
    if texts and model.manifest.text is None:
        raise BadImage(f"{texts[0]}: there is no such file, and {model.manifest.name} reads no texts; give an image")
    with counting("embed", len(images)) as done:
        of_images = iter(model.embed_many([read_image(image) for image in images], done=done)) if images else iter(())
    of_texts = iter(model.embed_texts(texts)) if texts else iter(())
    return np.stack([next(of_images if is_image else of_texts) for is_image in are_images])


def _is_image(given: str) -> bool:
    """Whether an argument is an image or meant as one: a path that is not there must not become a text."""
    from edgevlm_runtime.search import IMAGE_SUFFIXES

    if given == STDIN or os.path.isfile(given):
        return True
    return Path(given).suffix.lower() in IMAGE_SUFFIXES or (os.sep in given and os.path.exists(given))


def _digits(row: FloatArray) -> list[float]:
    """The numbers with as few digits as float32 needs."""
    return [float(str(value)) for value in row]


def _check_out(out: Path, inputs: Sequence[str]) -> None:
    """Refuse, before a model works for nothing, what could not be written afterwards.

    Raises:
        InvalidOption: the suffix is not .npy, the folder is missing, or `out` is one of the inputs.
    """
    if out.suffix != ".npy":
        raise InvalidOption(f"--out {out}: vectors are saved as .npy; give a name that ends so")
    if not out.parent.is_dir():
        raise InvalidOption(f"--out {out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise InvalidOption(f"--out {out}: is a folder; give a file's name")
    if out.exists() and any(os.path.exists(given) and out.samefile(given) for given in inputs):
        raise InvalidOption(f"--out {out}: is one of the inputs; give another name")


def _save(vectors: FloatArray, out: Path) -> None:
    import numpy as np

    from edgevlm_runtime.checksums import write_atomically

    buffer = io.BytesIO()
    np.save(buffer, vectors)
    try:
        write_atomically(out, buffer.getvalue())
    except OSError as error:
        raise EdgeVLMError(f"--out {out}: can not be written: {error.strerror}") from error
