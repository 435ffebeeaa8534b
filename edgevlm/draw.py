"""Boxes and points onto the upright image: what `detect --draw` and `point --draw` write.

Colors alternate so that neighbors can be told apart, and everything has a dark outline so that it can be read on any
background. Knows nothing of models.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from edgevlm_runtime.answer import Box, Point
from edgevlm_runtime.errors import EdgeVLMError, InvalidOption

OUTLINE = (0, 0, 0)
COLORS = ((255, 214, 10), (64, 224, 255), (255, 105, 180), (144, 238, 144), (255, 140, 66), (200, 170, 255))


def check_target(out: Path, source: str) -> None:
    """Refuse, before a model works for nothing, what could not be written afterwards.

    Raises:
        InvalidOption: the suffix names no image format, the folder is missing, or `out` is the image itself.
    """
    formats = Image.registered_extensions()
    if formats.get(out.suffix.lower()) not in Image.SAVE:
        raise InvalidOption(f"--draw {out}: {out.suffix or 'no suffix'} is no image format; use .png or .jpg")
    if not out.parent.is_dir():
        raise InvalidOption(f"--draw {out}: the folder {out.parent} does not exist")
    if out.is_dir():
        raise InvalidOption(f"--draw {out}: is a folder; give a file's name")
    if out.exists() and Path(source).exists() and out.samefile(source):
        raise InvalidOption(f"--draw {out}: is the image itself; give another name")


def draw_places(pixels: npt.NDArray[np.uint8], places: Sequence[Box | Point], label: str) -> Image.Image:
    """The image (height, width, 3) with a labeled frame for each box and a labeled dot for each point.

    Coordinates are fractions of the image; what lies outside is moved to its border.
    """
    image = Image.fromarray(pixels)
    line_px = max(1, round(max(image.size) / 400))
    font = ImageFont.load_default(size=max(10, 6 * line_px))
    pen = ImageDraw.Draw(image)
    anchors = [_mark(pen, image.size, place, _color(index), line_px) for index, place in enumerate(places)]
    # Labels last: a frame drawn later must not cross a name.
    for index, anchor in enumerate(anchors):
        _label(pen, anchor, label, font, _color(index))
    return image


def save(image: Image.Image, out: Path) -> None:
    """Write the image in the format that the suffix names.

    Raises:
        EdgeVLMError: the file can not be written; a file that did not exist before is not left half-written.
    """
    encoded = io.BytesIO()
    image.save(encoded, format=Image.registered_extensions()[out.suffix.lower()])
    existed = out.exists()
    try:
        out.write_bytes(encoded.getvalue())
    except OSError as error:
        if not existed:
            out.unlink(missing_ok=True)
        raise EdgeVLMError(f"--draw {out}: can not be written: {error.strerror}") from error


def _mark(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], place: Box | Point, color: tuple[int, int, int], line_px: int
) -> tuple[int, int]:
    """Draw one place; where its label goes."""
    if isinstance(place, Point):
        x, y = _to_pixels(size, place.x, place.y)
        radius = 3 * line_px
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), color, OUTLINE, line_px)
        return x + radius, y - radius
    left, top = _to_pixels(size, place.x_min, place.y_min)
    right, bottom = _to_pixels(size, place.x_max, place.y_max)
    around = (left - line_px, top - line_px, max(left, right) + line_px, max(top, bottom) + line_px)
    pen.rectangle(around, outline=OUTLINE, width=3 * line_px)
    pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=color, width=line_px)
    return left, top


def _color(index: int) -> tuple[int, int, int]:
    return COLORS[index % len(COLORS)]


def _to_pixels(size: tuple[int, int], x: float, y: float) -> tuple[int, int]:
    width, height = size
    return round(min(max(x, 0.0), 1.0) * (width - 1)), round(min(max(y, 0.0), 1.0) * (height - 1))


def _label(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    color: tuple[int, int, int],
) -> None:
    pad = 2
    left, top, right, bottom = pen.textbbox(at, text, font=font)
    # Above its place where there is room, else as far up as the image goes.
    shift = max(pad - top, at[1] - bottom - pad)
    pen.rectangle((left - pad, top + shift - pad, right + pad, bottom + shift + pad), fill=OUTLINE)
    pen.text((at[0], at[1] + shift), text, fill=color, font=font)
