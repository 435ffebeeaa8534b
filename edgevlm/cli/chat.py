"""chat: questions about one image, which is encoded once."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.flags import TextFlags
from edgevlm.cli.output import note, report
from edgevlm.cli.session import STDIN, Session
from edgevlm_runtime.errors import EdgeVLMError, InvalidOption, UnsupportedTask

if TYPE_CHECKING:
    from edgevlm_runtime.encoded import EncodedImage

_HELP = "/image PATH asks about another image, /clear about none, /bye or Ctrl-D ends; Ctrl-C stops an answer"


def chat(
    flags: TextFlags,
    image: Annotated[str | None, typer.Argument(metavar="[IMAGE]", help="An image file.")] = None,
) -> None:
    """Ask questions in turn. Each is answered by itself: earlier ones are not remembered, the image is."""
    if flags.json:
        raise InvalidOption("chat prints no JSON; use query for one question and one object")
    with Session(flags, many_images=True) as session:
        conversation = _Conversation(session, flags)
        if image is not None:
            conversation.look_at(image)
        if _is_typed():
            note(_HELP)
        while (line := _read_line()) not in (None, "/bye", "/quit", "/exit"):
            conversation.take(line)


class _Conversation:
    """A model and the image that it is looking at."""

    def __init__(self, session: Session, flags: TextFlags) -> None:
        self._flags = flags
        self._session = session
        self._image: EncodedImage | None = None
        manifest = self._session.model.manifest
        if "query" not in manifest.tasks:
            raise UnsupportedTask(f"{manifest.name} can not chat; it can: {', '.join(manifest.tasks)}")

    def look_at(self, path: str) -> None:
        """Encode another image.

        Raises:
            InvalidOption: stdin, where the questions come from, is no image.
            BadImage: as `Model.encode`.
        """
        if path == STDIN:
            raise InvalidOption("chat reads questions from stdin; give the image as a file")
        self._image = self._session.model.encode(path, max_crops=self._flags.max_crops)

    def take(self, line: str) -> None:
        """Answer a question or follow a command; what fails or is interrupted does not end the chat."""
        command, _, rest = line.partition(" ")
        try:
            if command == "/image":
                self.look_at(rest.strip())
            elif command == "/clear":
                self._image = None
            elif command.startswith("/"):
                note(_HELP)
            elif line:
                self._session.print_answer(self._session.model.stream(self._image, line, self._session.options))
        except (EdgeVLMError, KeyboardInterrupt) as error:
            report(error, verbose=self._flags.verbose)


def _read_line() -> str | None:
    """The next line without blanks around it; None at the end of the input."""
    if not _is_typed():
        line = sys.stdin.readline()
        return line.strip() if line else None
    with suppress(ImportError):  # editing and history, which Python does not have everywhere
        import readline  # noqa: F401
    try:
        return input("> ").strip()
    except EOFError:
        return None


def _is_typed() -> bool:
    # Python writes the prompt to stdout, which is for answers where it is no terminal.
    return sys.stdin.isatty() and sys.stdout.isatty()
