"""run, caption, query: text about images."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from edgevlm.cli.flags import TextFlags
from edgevlm.cli.output import note
from edgevlm.cli.session import ImageArgument, Session, check_words, read_image
from edgevlm_runtime.errors import InvalidOption

Length = Annotated[Literal["short", "normal", "long"], typer.Option(help="How much the caption tells.")]


def run(
    arguments: Annotated[
        list[str], typer.Argument(metavar="IMAGE... PROMPT", help="One or more images (- is stdin), then the prompt.")
    ],
    flags: TextFlags,
) -> None:
    """Answer a prompt about an image. Of several images each is answered in turn, its name on stderr."""
    *images, prompt = arguments
    if not images:
        raise InvalidOption(f'run needs images and then a prompt: edgevlm run {arguments[0]} "describe"')
    if images.count("-") > 1:
        raise InvalidOption("only one image can come from stdin")
    if os.path.isfile(prompt):
        raise InvalidOption(f"the prompt comes last, but {prompt} is a file")
    check_words(prompt, "prompt")
    session = Session(flags, many_images=len(images) > 1)
    if flags.json and len(images) > 1:
        _print_together(session, images, prompt)
        return
    for image in images:
        if len(images) > 1:
            note(f"{image}:")
        session.print_answer(session.model.stream(read_image(image), prompt, session.options))


def caption(image: ImageArgument, flags: TextFlags, length: Length = "normal") -> None:
    """Describe an image."""
    session = Session(flags)
    session.print_answer(session.model.stream_caption(read_image(image), length, session.options))


def query(
    arguments: Annotated[
        list[str], typer.Argument(metavar="[IMAGE] QUESTION", help="An image (- is stdin), if any, and the question.")
    ],
    flags: TextFlags,
) -> None:
    """Answer a question about an image, or one that needs no image."""
    if len(arguments) > 2:
        raise InvalidOption(f"query takes an image and a question, not {len(arguments)} arguments; quote the question")
    *images, question = arguments
    if os.path.isfile(question):
        raise InvalidOption(f"the question is missing, or not the last argument: {question} is a file")
    check_words(question, "question")
    session = Session(flags)
    image = read_image(images[0]) if images else None
    session.print_answer(session.model.stream(image, question, session.options))


def _print_together(session: Session, images: list[str], prompt: str) -> None:
    answers = []
    for image in images:
        answer = session.model.query(read_image(image), prompt, session.options)
        answers.append({"image": image, **session.as_record(answer)})
        session.print_costs(answer)
    session.print_json({"model": session.model.manifest.name, "answers": answers})
