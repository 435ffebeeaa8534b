"""From flags to an opened model, from arguments to images, from answers to text: what all commands that ask share."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.flags import ModelFlags
from edgevlm.cli.output import emit, emit_json, emit_line, note
from edgevlm.home import BUILT_IN, load
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.records import write_record

if TYPE_CHECKING:
    from edgevlm_runtime.answer import Answer, Detections, Points
    from edgevlm_runtime.image import ImageSource
    from edgevlm_runtime.streams import AnswerStream

STDIN = "-"

ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="An image file, or - for stdin.")]

_INTRODUCTION = (
    f"edgevlm: the built-in {BUILT_IN} answers, which knows drawn scenes, digits and short words; for photographs run "
    "`edgevlm export moondream2` once, then use -m moondream2"
)


class Session:
    """An opened model, and how its answers are printed."""

    def __init__(self, flags: ModelFlags, *, many_images: bool = False) -> None:
        """Open the model of `-m`, of EDGEVLM_MODEL, or the built-in one; raises as `edgevlm.load`.

        With `many_images` the image encoder stays open after the first.
        """
        self._flags = flags
        self.options = flags.generate_options()
        chosen = flags.model or os.environ.get("EDGEVLM_MODEL")
        self.model = load(chosen or BUILT_IN, engine=flags.engine, threads=flags.threads, low_memory=not many_images)
        self._introduced = bool(chosen)

    def introduce(self) -> None:
        """Say on stderr, once, that nobody chose the model that answers. Not before it does: errors are one line."""
        if not self._introduced:
            note(_INTRODUCTION)
            self._introduced = True

    def print_answer(self, stream: AnswerStream) -> None:
        """Print an answer as it is written, or as one JSON object once it is whole."""
        with stream:
            if not self._flags.json:
                self.print_costs(self._print_pieces(stream))
                return
            answer = stream.finish()
        self.print_json(self.as_record(answer))
        self.print_costs(answer)

    def print_json(self, record: dict[str, object]) -> None:
        """Print one JSON object."""
        self.introduce()
        emit_json(record)

    def as_record(self, answer: Answer | Detections | Points) -> dict[str, object]:
        """The JSON object of an answer."""
        return {"model": self.model.manifest.name, **write_record(answer)}

    def print_costs(self, answer: Answer | Detections | Points) -> None:
        """What the model thought and, when asked, what the answer took, on stderr."""
        reasoning = getattr(answer, "reasoning", None)
        if reasoning is not None and not self._flags.json:
            note(f"reasoning: {reasoning.text}")
        if self._flags.verbose:
            usage, timings = answer.usage, answer.timings
            note(
                f"load {timings.load_ms:.0f} ms, image {timings.image_ms:.0f} ms ({usage.image_tokens} tokens), "
                f"prompt {timings.prefill_ms:.0f} ms ({usage.prompt_tokens} tokens), answer {timings.decode_ms:.0f} ms "
                f"({usage.completion_tokens} tokens, {timings.tokens_per_second:.1f} tokens/s)"
            )

    def _print_pieces(self, stream: AnswerStream) -> Answer:
        """Print the pieces as they come, and the end of the line even when the answer is cut short."""
        written = False
        try:
            for piece in stream:
                self.introduce()
                emit(piece)
                written = True
        except BaseException:
            if written:
                emit_line()
            raise
        emit_line()
        assert stream.answer is not None
        return stream.answer


def read_image(argument: str) -> ImageSource:
    """What an IMAGE argument stands for: a path, or `-` for the bytes on stdin."""
    from edgevlm_runtime.image import MAX_BYTES

    # One byte above the limit is enough for the runtime to refuse it.
    return sys.stdin.buffer.read(MAX_BYTES + 1) if argument == STDIN else argument


def check_words(text: str, what: str) -> str:
    """`text`, unless it is blank.

    Raises:
        InvalidOption: it is; `what` names the argument.
    """
    if not text.strip():
        raise InvalidOption(f"the {what} is empty; say what you want to know")
    return text
