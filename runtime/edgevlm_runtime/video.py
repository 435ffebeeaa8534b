"""A video file to frames, evenly spread over its time, with PyAV, which is imported only here and when needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgevlm_runtime.errors import BadImage, EngineError
from edgevlm_runtime.image import MAX_PIXELS, Pixels

_INSTALL = 'pip install "edgevlm[video]"'


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video and which of its frames are wanted, ascending."""

    path: Path
    indexes: tuple[int, ...]

    def read(self) -> Iterator[Pixels]:
        """The wanted frames, uint8 (height, width, 3).

        Raises:
            BadImage: the video is damaged before the first of them.
        """
        wanted, given = set(self.indexes), 0
        with _opened(self.path) as container:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    given += 1
                    yield frame.to_ndarray(format="rgb24")
                if index >= self.indexes[-1]:
                    return
        if not given:
            raise BadImage(f"{self.path}: no frame can be decoded; it is truncated or corrupt")


def open_video(path: Path, fps: float) -> Video:
    """Look at a video's length and choose `fps` frames of each second, at least one.

    Raises:
        BadImage: the file can not be read as a video.
        EngineError: PyAV is not installed.
    """
    with _opened(path) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise BadImage(f"{path}: {stream.width} x {stream.height}, frames are too large; scale it down")
        n_frames = stream.frames or sum(packet.pts is not None for packet in container.demux(video=0))
        rate = float(stream.average_rate or stream.guessed_rate or 0)
    if n_frames < 1 or rate <= 0:
        raise BadImage(f"{path}: there are no frames in it, or their rate is not known")
    return Video(path=path, indexes=spread(n_frames, rate / fps))


def spread(n_frames: int, every: float) -> tuple[int, ...]:
    """One of each `every` frames, from the middle of equal shares of a video; at least one of all."""
    n_wanted = max(1, int(n_frames // every))
    ends = np.round((n_frames - 1) / n_wanted * np.arange(n_wanted + 1)).astype(np.int64)
    return tuple(((ends[:-1] + ends[1:]) // 2).tolist())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """PyAV's container of a file with a video in it; what PyAV raises becomes BadImage."""
    try:
        import av
    except ImportError as error:
        raise EngineError(f"{path}: to read a video PyAV is needed: {_INSTALL}") from error
    if not path.is_file():
        raise BadImage(f"{path}: there is no such file; check the path")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise BadImage(f"{path}: there is no video in it")
            container.streams.video[0].thread_type = "AUTO"
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BadImage(f"{path}: can not be read as a video ({reason})") from error
