"""Several images as one input: a list, a folder of frames, or a video file, to RGB pixels one after the other.

Frames are decoded as they are asked for, so that memory does not grow with their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeGuard, cast

import numpy as np

from edgevlm_runtime import video
from edgevlm_runtime.errors import BadImage, UnsupportedTask
from edgevlm_runtime.image import ImageSource, Pixels, load_image
from edgevlm_runtime.manifest import FrameSpec

FramesSource: TypeAlias = Sequence[ImageSource] | str | os.PathLike[str]
"""Images in their order, a folder of them, by name, or a video file."""

_IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})
_VIDEOS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv"})


@dataclass(frozen=True, kw_only=True)
class Frames:
    """`count` frames, a few fewer where a video is cut short; `read` gives their upright pixels (height, width, 3)."""

    count: int
    read: Callable[[], Iterator[Pixels]]


def is_video(source: object) -> bool:
    """Whether a file's name is that of a video."""
    return isinstance(source, str | os.PathLike) and Path(os.fsdecode(source)).suffix.lower() in _VIDEOS


def is_frames(source: object) -> TypeGuard[FramesSource]:
    """Whether a source is several images: a list or tuple, a folder, or a video."""
    if isinstance(source, list | tuple):
        return True
    return is_video(source) or (isinstance(source, str | os.PathLike) and os.path.isdir(source))


def open_frames(source: FramesSource, spec: FrameSpec) -> Frames:
    """The frames of what `is_frames`: all of a list or folder, and of a video as many a second as the model wants.

    Raises:
        BadImage: there is none, or a video can not be read; of single frames as they are read.
        EngineError: a video needs PyAV, which is not installed.
    """
    if is_video(source):
        assert isinstance(source, str | os.PathLike)
        found = video.open_video(Path(source), spec.fps)
        return Frames(count=len(found.indexes), read=found.read)
    images = _in_folder(Path(source)) if isinstance(source, str | os.PathLike) else list(source)
    if not images:
        raise BadImage("the list of frames is empty; give at least one image")
    return Frames(count=len(images), read=lambda: map(load_image, images))


def single(source: ImageSource | FramesSource, name: str) -> ImageSource:
    """The source of one image, for the model of that name, which looks at one.

    Raises:
        UnsupportedTask: the source is a list, a tuple or a video.
    """
    if isinstance(source, list | tuple) or is_video(source):
        raise UnsupportedTask(f"{name} looks at one image at a time, not at several frames or a video")
    return cast(ImageSource, source)


def squash(pixels: Pixels, side: int) -> Pixels:
    """Pixels (height, width, 3) to (side, side, 3), each taken from one: what PyTorch calls nearest."""
    rows, cols = (_nearest(length, side) for length in pixels.shape[:2])
    return pixels[rows[:, None], cols]


def _nearest(length: int, side: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where each of `side` pixels is taken from among `length`; the arithmetic is PyTorch's, in float32."""
    places = np.arange(side, dtype=np.float32) * (np.float32(length) / np.float32(side))
    return np.minimum(places.astype(np.int64), length - 1)


def _in_folder(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _IMAGES and path.is_file())
    except OSError as error:
        raise BadImage(f"{folder}: can not be read as a folder of frames ({error.strerror})") from error
    if not files:
        raise BadImage(f"{folder}: there is no image in this folder; give one with frames in it")
    return files
