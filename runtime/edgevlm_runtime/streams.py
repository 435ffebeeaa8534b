"""An answer as it is written: an iterator of text that can be closed at any time, from any thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from functools import partial
from types import TracebackType
from typing import TypeAlias

from edgevlm_runtime.answer import Answer
from edgevlm_runtime.errors import InvalidOption

Checkpoint: TypeAlias = Callable[[int, int], None]
"""Called with the index and number of crops before each crop of an image is encoded; what it raises ends that."""


class _Closed(Exception):
    """Ends the encoding of an image whose stream is being closed."""


class AnswerStream(Iterator[str]):
    """Pieces of an answer's text, none of them empty; `answer` is the whole, once the stream has ended by itself.

    Closing it, or leaving its with statement, cancels the answer at the next crop or token.
    """

    def __init__(self, write: Callable[[Checkpoint], Generator[str, None, Answer]]) -> None:
        """`write` makes the pieces, of which some may be empty."""
        self.answer: Answer | None = None
        self._closing = threading.Event()
        # Without a reference to the stream: one that nobody holds any more is closed at once.
        self._pieces = write(partial(_checkpoint, self._closing))
        self._running = threading.Lock()

    def __next__(self) -> str:
        with self._running:
            try:
                while not self._closing.is_set():
                    if piece := next(self._pieces):
                        return piece
            except StopIteration as end:
                self.answer = end.value
            except _Closed:
                pass
            raise StopIteration

    def close(self) -> None:
        """Cancel. Returns when the model has stopped, after one crop or token at most; harmless when it has ended."""
        self._closing.set()
        with self._running:
            self._pieces.close()

    def finish(self) -> Answer:
        """Run to the end and return the whole answer.

        Raises:
            InvalidOption: the stream was closed before its end.
        """
        for _ in self:
            pass
        if self.answer is None:
            raise InvalidOption("the stream was closed before the end of its answer; ask again")
        return self.answer

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checkpoint(closing: threading.Event, index: int, n_crops: int) -> None:
    if closing.is_set():
        raise _Closed


async def iterate(stream: AnswerStream) -> AsyncGenerator[str, None]:
    """The stream's pieces, made by worker threads; closing this, or cancelling its task, closes the stream."""
    import asyncio  # not at the top: it takes 20 ms, which commands would wait for

    try:
        while (piece := await asyncio.to_thread(next, stream, None)) is not None:
            yield piece
    finally:
        # Shielded: a second cancellation must not leave the model running.
        await asyncio.shield(asyncio.to_thread(stream.close))


async def run_to_end(stream: AnswerStream) -> Answer:
    """The whole answer, made by a worker thread; cancelling the task closes the stream."""
    import asyncio

    try:
        return await asyncio.to_thread(stream.finish)
    finally:
        await asyncio.shield(asyncio.to_thread(stream.close))
