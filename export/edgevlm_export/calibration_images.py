"""Images to calibrate an image model on: a folder's, or drawn ones, with this project's examples where they lie here.

Drawn scenes can not stand for photographs in what they show, but in what they make activations do: smooth and rough
areas, large and small contrasts, dark and bright ones, colors, edges in every direction, and noise at every scale.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from edgevlm_runtime.errors import ExportError
from edgevlm_runtime.image import Pixels, load_image

MOST = 64  # images of a folder; the ranges of activations hardly widen after that
_EXAMPLES = Path(__file__).parents[2] / "examples"  # in the repository; what is installed comes without
_HELD_OUT = 8  # one of so many images of a folder is not calibrated on
_DRAWN = 24
_GOLDEN = 6
_CALIBRATION_SEED, _GOLDEN_SEED = 0, 1_000_000
_SIDE = 288  # as large as most models look at
_GOLDEN_SIDE = 240  # pixels at most: PNGs of about 100 kB
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})

_Field = npt.NDArray[np.float64]


def calibration_images(folder: Path | None) -> list[Pixels]:
    """RGB uint8 (height, width, 3): a folder's images by name, at most MOST, or drawn scenes and examples.

    A folder's images are not mixed with scenes: for the digits of training/digits that lowered FastViT's cosine with
    float32 from 0.998 to 0.92. Some of them are left for `golden_images`.

    Raises:
        ExportError: the folder can not be read, or holds no image.
        BadImage: one of the images can not be read; the message names it.
    """
    if folder is not None:
        return [load_image(path) for path in _split(_images_in(folder))[0][:MOST]]
    drawn = [_draw(_CALIBRATION_SEED + index, _SIDE) for index in range(_DRAWN)]
    examples = _images_in(_EXAMPLES) if (_EXAMPLES.parent / "models.yaml").is_file() else []
    return [*drawn, *map(load_image, examples)]


def golden_images(folder: Path | None = None) -> list[bytes]:
    """PNGs to verify bundles on, none of which they are calibrated on; they become part of the bundle.

    Of a folder every eighth image, scaled down to _GOLDEN_SIDE, since ranges fit only what is like its images (the
    only image of a folder serves for both); without one, scenes from other seeds.

    Raises:
        ExportError, BadImage: as `calibration_images`.
    """
    if folder is not None:
        return [_encode(load_image(path)) for path in _split(_images_in(folder))[1][:_GOLDEN]]
    return [_encode(_draw(_GOLDEN_SEED + index, _GOLDEN_SIDE)) for index in range(_GOLDEN)]


def _split(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """What to calibrate on and what to verify on."""
    step = min(_HELD_OUT, len(files))
    golden = files[step - 1 :: step]
    return [path for path in files if path not in golden] or files, golden


def _encode(pixels: Pixels) -> bytes:
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((_GOLDEN_SIDE, _GOLDEN_SIDE))
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _images_in(folder: Path) -> list[Path]:
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    except OSError as error:
        reason = f"can not be read as a folder of images ({error.strerror})"
        raise ExportError(f"{folder}: {reason}; check --calibration") from error
    files = [path for path in files if path.is_file() and not path.name.startswith(".")]
    if not files:
        raise ExportError(f"{folder}: there is no image in it; calibration needs a few dozen typical ones")
    return files


def _draw(seed: int, side: int) -> Pixels:
    """One scene of about side x side pixels: a background, things on it, blur, light and grain as of a camera."""
    rng = np.random.default_rng(seed)
    height, width = side, round(side * rng.uniform(0.8, 1.25))
    background = _BACKGROUNDS[seed % len(_BACKGROUNDS)](height, width, rng)
    image = Image.fromarray(_to_pixels(_colored(background, rng)))
    _draw_things(image, rng)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.choice([0.0, 0.5, 1.5]))))
    return _to_pixels(_photographed(np.asarray(image) / 255, rng))


def _gradient(height: int, width: int, rng: np.random.Generator) -> _Field:
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    return np.asarray(0.5 + 0.5 * (np.cos(angle) * (down - 0.5) + np.sin(angle) * (across - 0.5)))


def _waves(height: int, width: int, rng: np.random.Generator) -> _Field:
    """Stripes that become finer to one side and cross each other."""
    down, across = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    first, second = rng.uniform(4, 40, 2)
    stripes = np.sin(first * 2 * down * (0.5 + across)) + np.sin(second * (across + 0.3 * down))
    return np.asarray(0.5 + 0.25 * stripes)


def _clouds(height: int, width: int, rng: np.random.Generator) -> _Field:
    """Noise at every scale, each half as strong as the next larger, as natural images have it."""
    total, weight, cells = np.zeros((height, width)), 1.0, 3
    while cells < min(height, width):
        grain = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
        total += weight * np.asarray(grain.resize((width, height), Image.Resampling.BICUBIC))
        weight, cells = weight * 0.6, cells * 2
    return np.asarray((total - total.min()) / (np.ptp(total) + 1e-9))


def _tiles(height: int, width: int, rng: np.random.Generator) -> _Field:
    """A pavement of flat patches with hard edges."""
    rows, cols = rng.integers(3, 24, 2)
    tiles = Image.fromarray(rng.random((rows, cols)).astype(np.float32))
    return np.asarray(tiles.resize((width, height), Image.Resampling.NEAREST), np.float64)


_BACKGROUNDS: tuple[Callable[[int, int, np.random.Generator], _Field], ...] = (_gradient, _waves, _clouds, _tiles)


def _colored(field: _Field, rng: np.random.Generator) -> _Field:
    """Values 0..1 (height, width) between two colors, (height, width, 3)."""
    low, high = rng.uniform(0, 1, (2, 3))
    return np.asarray(low + (high - low) * field[..., None])


def _draw_things(image: Image.Image, rng: np.random.Generator) -> None:
    """Some ellipses, polygons, lines and words, from tiny to half the image."""
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 14)):
        color = tuple(rng.integers(0, 256, 3).tolist())
        center = rng.uniform(0, 1, 2) * image.size
        radius = min(image.size) * rng.uniform(0.02, 0.3)
        corners = center + radius * rng.uniform(-1, 1, (rng.integers(3, 7), 2))
        points = [(float(x), float(y)) for x, y in corners]
        start, end = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        match rng.integers(0, 4):
            case 0:
                pen.ellipse((*start, *end), fill=color)
            case 1:
                pen.polygon(points, fill=color)
            case 2:
                pen.line(points, fill=color, width=int(rng.integers(1, 8)))
            case _:
                pen.text(start, "Open 9:30", fill=color, font_size=max(8, radius / 2))


def _photographed(values: _Field, rng: np.random.Generator) -> _Field:
    """Exposure, contrast and grain; values around 0..1."""
    contrast, exposure = rng.uniform(0.5, 1.3), rng.uniform(-0.2, 0.2)
    grain = rng.standard_normal(values.shape) * rng.choice([0.0, 0.01, 0.05])
    return np.asarray((values - 0.5) * contrast + 0.5 + exposure + grain)


def _to_pixels(values: _Field) -> Pixels:
    pixels: Pixels = np.rint(values.clip(0, 1) * 255).astype(np.uint8)
    return pixels
