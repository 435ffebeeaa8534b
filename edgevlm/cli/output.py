"""The only place that writes: answers and JSON to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence

import typer

from edgevlm_runtime.errors import EdgeVLMError

INTERRUPTED = 130


def emit(text: str) -> None:
    """Write a piece of the answer at once.

    Raises:
        typer.Exit: the reader is gone (`| head`); that is no failure.
        EdgeVLMError: stdout can not be written, such as on a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence_stdout()
        raise typer.Exit(0) from None
    except OSError as error:
        _silence_stdout()
        raise EdgeVLMError(f"stdout can not be written: {error.strerror}") from error


def emit_line(text: str = "") -> None:
    """Write a line of the answer at once; raises as `emit` does."""
    emit(f"{text}\n")


def emit_json(record: Mapping[str, object]) -> None:
    """Write one JSON object on one line; raises as `emit` does."""
    emit_line(json.dumps(record, ensure_ascii=False))


def emit_table(rows: Sequence[Sequence[str]], *, cut: bool = False) -> None:
    """Write rows as columns that are padded to their widest cell; raises as `emit` does.

    With `cut` a row has one line: on a terminal, what does not fit its width is left out.
    """
    width = shutil.get_terminal_size().columns if cut and sys.stdout.isatty() else None
    for line in _columns(rows):
        emit_line(line if width is None or len(line) <= width else f"{line[: width - 1]}…")


def note(text: str) -> None:
    """Write a line for the person at the keyboard to stderr."""
    print(text, file=sys.stderr, flush=True)


def note_log(*, wanted: bool) -> None:
    """Tell on stderr, or no longer, what the runtime logs."""
    import logging

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("edgevlm: %(message)s"))
    logger = logging.getLogger("edgevlm_runtime")
    logger.handlers = [handler] if wanted else []
    logger.setLevel(logging.INFO if wanted else logging.NOTSET)


def note_table(rows: Sequence[Sequence[str]]) -> None:
    """`emit_table` to stderr."""
    for line in _columns(rows):
        note(line)


def report(error: BaseException, *, verbose: bool) -> int:
    """Say on one line of stderr what went wrong, after the traceback when asked, and return the exit code."""
    if verbose and not isinstance(error, KeyboardInterrupt | typer.TyperException):
        traceback.print_exception(error)
    message, code = _describe(error)
    note(f"edgevlm: {' '.join(message.split())}")
    return code


def prepare_streams() -> None:
    """Let no character that a terminal can not show, or a name that is not Unicode, end an answer."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _describe(error: BaseException) -> tuple[str, int]:
    match error:
        case EdgeVLMError():
            return str(error), error.exit_code
        case typer.TyperException():
            return error.format_message(), error.exit_code
        case KeyboardInterrupt() | typer.Abort():
            return "interrupted", INTERRUPTED
        case MemoryError():
            return "out of memory; a smaller image, --max-crops 1 or a smaller model needs less", 1
        case OSError(filename=str() | bytes() as name):
            return f"{os.fsdecode(name)}: {error.strerror}", 1
        case _:
            return f"unexpected {type(error).__name__}: {error} (--verbose shows where)", 1


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _silence_stdout() -> None:
    # What is still buffered would raise again when the interpreter flushes stdout at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
