"""Fonts for printed texts: Pillow's built-in one in two weights, then the DejaVu files of the system, if any.

Scenes of the test split use the built-in font only, so that they look the same on every machine.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

_FOLDER = Path("/usr/share/fonts/truetype/dejavu")
_REFERENCE_SIZE = 100
_BUILTIN_STROKES = (0.0, 0.035)
_SKIPPED = ("ExtraLight", "TeXGyre")

Font = ImageFont.FreeTypeFont


@lru_cache(maxsize=1)
def _files() -> tuple[Path, ...]:
    if not _FOLDER.is_dir():
        return ()
    return tuple(path for path in sorted(_FOLDER.glob("*.ttf")) if not any(word in path.name for word in _SKIPPED))


def count(*, builtin_only: bool) -> int:
    """How many fonts there are to choose from."""
    return len(_BUILTIN_STROKES) + (0 if builtin_only else len(_files()))


@lru_cache(maxsize=512)
def load(variant: int, size: int) -> tuple[Font, int]:
    """The font number `variant` at a size in pixels, with the width of the stroke that makes it bold."""
    if variant < len(_BUILTIN_STROKES):
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise RuntimeError("this Pillow has no FreeType support, which drawing words needs")
        return font, round(_BUILTIN_STROKES[variant] * size)
    return ImageFont.truetype(str(_files()[variant - len(_BUILTIN_STROKES)]), size), 0


@lru_cache(maxsize=4096)
def _reference_box(text: str, variant: int) -> tuple[float, float, float, float]:
    font, stroke = load(variant, _REFERENCE_SIZE)
    return font.getbbox(text, stroke_width=stroke)


def aspect(text: str, variant: int) -> float:
    """Width / height of the inked box of a text."""
    x0, y0, x1, y1 = _reference_box(text, variant)
    return (x1 - x0) / (y1 - y0)


def size_for(text: str, variant: int, height: float) -> int:
    """Font size at which the inked box of a text is `height` pixels high."""
    _, y0, _, y1 = _reference_box(text, variant)
    return max(4, round(_REFERENCE_SIZE * height / (y1 - y0)))
