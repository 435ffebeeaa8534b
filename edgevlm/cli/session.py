"""From flags to an opened model, from arguments to images, from answers to text: what all commands that ask share."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated

import typer

from edgevlm.cli.flags import ModelFlags, OpenFlags, TextFlags
from edgevlm.cli.output import emit, emit_json, emit_line, note, note_log
from edgevlm.cli.progress import following
from edgevlm.home import BUILT_IN, load, that_can
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.records import write_record

if TYPE_CHECKING:
    from edgevlm_runtime.answer import Answer, Detections, Points
    from edgevlm_runtime.image import ImageSource
    from edgevlm_runtime.labels import Classification
    from edgevlm_runtime.manifest import Task
    from edgevlm_runtime.model import Model
    from edgevlm_runtime.sessions import AnyImage
    from edgevlm_runtime.streams import AnswerStream

STDIN = "-"

ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="An image file, or - for stdin; a video.")]

_INTRODUCTION = (
    f"edgevlm: the built-in {BUILT_IN} answers, which knows drawn scenes, digits and short words; for photographs run "
    "`edgevlm export moondream2` once, then use -m moondream2"
)
_EXAMPLES: dict[Task, str] = {
    "classify": "fastvit_t8",
    "embed": "clip-vit-base-patch32",
    "search": "clip-vit-base-patch32",
}


class Session:
    """An opened model, and how its answers are printed. At its end it waits for an image that is being kept on disk."""

    def __init__(self, flags: ModelFlags, *, many_images: bool = False) -> None:
        """Open the model of `-m`, of EDGEVLM_MODEL, or the built-in one; raises as `edgevlm.load`.

        With `many_images` the image encoder stays open after the first.
        """
        self._flags = flags
        self.options = flags.generate_options()
        chosen = _chosen(flags)
        note_log(wanted=flags.verbose)
        self.model = load(
            chosen or BUILT_IN,
            engine=flags.engine,
            threads=flags.threads,
            context=flags.context,
            low_memory=not many_images,
            image_cache=not flags.no_cache,
            draft=flags.draft if isinstance(flags, TextFlags) else None,
        )
        self._introduced = bool(chosen)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.model.close()

    @property
    def takes_frames(self) -> bool:
        """Whether the model sees several images at once."""
        spec = self.model.manifest.image
        return spec is not None and spec.frames is not None

    def look(self, arguments: Sequence[str]) -> AnyImage:
        """What IMAGE arguments stand for; frames are encoded here, and counted on a terminal."""
        from edgevlm_runtime.frames import is_frames

        images = [read_image(argument) for argument in arguments]
        source = images[0] if len(images) == 1 else images
        if not self.takes_frames or not is_frames(source):
            return source
        with following("frames") as seen:
            return self.model.encode(source, checkpoint=seen)

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

    def as_record(self, answer: Answer | Detections | Points | Classification) -> dict[str, object]:
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
            if usage.guessed_tokens > 0:
                note(f"guessed {usage.guessed_tokens} tokens, {usage.accepted_tokens} of them right")

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


def open_image_model(flags: OpenFlags, task: Task) -> Model:
    """Open the model of `-m` or of EDGEVLM_MODEL for what the built-in one can not do; raises as `edgevlm.load`.

    Raises:
        InvalidOption: none is chosen; the message names those that can do the task, or how to export one.
    """
    chosen = _chosen(flags)
    if chosen is None:
        raise InvalidOption(f"the built-in {BUILT_IN} can not {task}; {_way_to(task)}")
    note_log(wanted=flags.verbose)
    return load(chosen, engine=flags.engine, threads=flags.threads)


def check_images(arguments: Sequence[str]) -> None:
    """Refuse what can not be read.

    Raises:
        InvalidOption: stdin stands for two images.
    """
    if arguments.count(STDIN) > 1:
        raise InvalidOption("only one image can come from stdin")


def one_record(images: Sequence[str], records: Sequence[dict[str, object]]) -> dict[str, object]:
    """The JSON object of answers about images: of one image its record, of several all records with their names."""
    if len(images) == 1:
        return records[0]
    answers = [{"image": image, **record} for image, record in zip(images, records, strict=True)]
    return {"model": records[0]["model"], "answers": answers}


def note_timings(found: Sequence[Classification]) -> None:
    """What a batch took, on stderr."""
    image_ms = sum(each.timings.image_ms for each in found)
    note(f"load {found[0].timings.load_ms:.0f} ms, images {image_ms:.0f} ms ({len(found)})")


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


def _chosen(flags: OpenFlags) -> str | None:
    return flags.model or os.environ.get("EDGEVLM_MODEL") or None


def _way_to(task: Task) -> str:
    able = that_can(task)
    if able:
        return f"choose one that can with -m: {', '.join(able)}"
    name = _EXAMPLES[task]
    return f"run `edgevlm export {name}` once where torch is installed, then use -m {name}"
