"""run, caption, query: text about images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgevlm.cli.flags import TextFlags
from edgevlm.cli.output import emit_line, note
from edgevlm.cli.sentence import N_SAID, sentence
from edgevlm.cli.session import ImageArgument, Session, check_images, check_words, note_timings, one_record, read_image
from edgevlm_runtime.errors import InvalidOption, UnsupportedTask

if TYPE_CHECKING:
    from edgevlm_runtime.manifest import Manifest

Length = Annotated[Literal["short", "normal", "long"], typer.Option(help="How much the caption tells.")]


def run(
    arguments: Annotated[
        list[str], typer.Argument(metavar="IMAGE... PROMPT", help="One or more images (- is stdin), then the prompt.")
    ],
    flags: TextFlags,
) -> None:
    """Answer a prompt about an image. Of several images each is answered in turn, its name on stderr.

    A model that sees several images at once takes them as the frames of one video, and also a video file or a folder
    of frames. A model that only classifies answers every prompt with what it sees.
    """
    *images, prompt = arguments
    if not images:
        raise InvalidOption(f'run needs images and then a prompt: edgevlm run {arguments[0]} "describe"')
    check_images(images)
    if os.path.isfile(prompt):
        raise InvalidOption(f"the prompt comes last, but {prompt} is a file")
    check_words(prompt, "prompt")
    with Session(flags, many_images=len(images) > 1) as session:
        if "query" not in session.model.manifest.tasks:
            _tell_classes(session, images, flags)
        elif session.takes_frames:
            session.print_answer(session.model.stream(session.look(images), prompt, session.options))
        elif flags.json and len(images) > 1:
            _print_together(session, images, prompt)
        else:
            _print_in_turn(session, images, prompt)


def caption(image: ImageArgument, flags: TextFlags, length: Length = "normal") -> None:
    """Describe an image."""
    with Session(flags) as session:
        session.print_answer(session.model.stream_caption(session.look([image]), length, session.options))


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
    with Session(flags) as session:
        image = session.look(images) if images else None
        session.print_answer(session.model.stream(image, question, session.options))


def _print_in_turn(session: Session, images: list[str], prompt: str) -> None:
    for image in images:
        if len(images) > 1:
            note(f"{image}:")
        session.print_answer(session.model.stream(read_image(image), prompt, session.options))


def _print_together(session: Session, images: list[str], prompt: str) -> None:
    answers = []
    for image in images:
        answer = session.model.query(read_image(image), prompt, session.options)
        answers.append(session.as_record(answer))
        session.print_costs(answer)
    session.print_json(one_record(images, answers))


def _tell_classes(session: Session, images: list[str], flags: TextFlags) -> None:
    """Answer whatever prompt with a sentence about each image.

    Raises:
        UnsupportedTask: the model knows no classes; the message says what it can do.
    """
    model = session.model
    if "classify" not in model.manifest.tasks or model.manifest.match is not None:
        raise UnsupportedTask(f"{model.manifest.name} answers no prompts; {_abilities(model.manifest)}")
    answers = []
    for image in images:
        found = model.classify(read_image(image), top_k=N_SAID)
        answers.append({**session.as_record(found), "text": sentence(found.labels)})
        if not flags.json:
            _print_named(image if len(images) > 1 else None, sentence(found.labels))
        if flags.verbose:
            note_timings([found])
    if flags.json:
        session.print_json(one_record(images, answers))


def _print_named(name: str | None, line: str) -> None:
    if name is not None:
        note(f"{name}:")
    emit_line(line)


def _abilities(manifest: Manifest) -> str:
    """What a model is good for that neither answers nor knows classes."""
    if "search" in manifest.tasks:
        return (
            'it compares images with texts: `edgevlm classify IMAGE --labels "a cat, a dog"`, '
            "`edgevlm search FOLDER TEXT` or `edgevlm embed IMAGE_OR_TEXT`"
        )
    return "it turns images into vectors: `edgevlm embed IMAGE`"
