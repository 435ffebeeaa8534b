"""Scenes to pixels: background, objects, light, blur, noise and JPEG artifacts, all from the scene's seed."""

from __future__ import annotations

import io
from typing import Any

import numpy
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from training import fonts, handwriting, shapes
from training.scenes import Item, Scene
from training.vocabulary import COLORS

Pixels = NDArray[numpy.float32]
_LEVELS = {"light": (200, 232), "gray": (112, 145), "dark": (34, 66)}


def draw(scene: Scene, longer_side: int) -> Image.Image:
    """An RGB picture whose longer side has the given number of pixels."""
    rng = numpy.random.default_rng(scene.seed)
    width = round(longer_side * min(1.0, scene.aspect))
    height = round(longer_side / max(1.0, scene.aspect))
    image = Image.fromarray(_background(scene, width, height, rng).clip(0, 255).astype(numpy.uint8))
    for item in scene.items:
        _draw_item(image, item, rng)
    return _photograph(image, rng)


def _background(scene: Scene, width: int, height: int, rng: Generator) -> Pixels:
    """(height, width, 3) of a tone, slightly tinted, with a pattern of about the same tone."""
    low, high = _LEVELS[scene.tone]
    base = rng.uniform(low, high) + rng.uniform(-14, 14, 3)
    swing = rng.uniform(9, 17) * (rng.integers(0, 2) * 2 - 1)
    pattern = _pattern(scene.pattern, width, height, rng)
    field: Pixels = (base + swing * pattern[..., None]).astype(numpy.float32)
    return field


def _pattern(name: str, width: int, height: int, rng: Generator) -> Pixels:
    """(height, width) between -1 and 1."""
    shorter = min(width, height)
    angle, period = rng.uniform(0, numpy.pi), shorter * rng.uniform(0.09, 0.2)
    y, x = numpy.mgrid[0:height, 0:width].astype(numpy.float32)
    along = x * numpy.cos(angle) + y * numpy.sin(angle)
    across = y * numpy.cos(angle) - x * numpy.sin(angle)
    if name == "shaded":
        values = along - along.mean()
        return numpy.asarray(1.6 * values / numpy.abs(values).max(), dtype=numpy.float32)
    if name == "striped":
        return _signs(numpy.sin(along * numpy.pi / period))
    if name == "checkered":
        return _signs(numpy.sin(along * numpy.pi / period) * numpy.sin(across * numpy.pi / period))
    if name == "grainy":
        cells = rng.normal(0, 90, (max(2, height * 26 // shorter), max(2, width * 26 // shorter)))
        grain = Image.fromarray((128 + cells).clip(0, 255).astype(numpy.uint8))
        smooth = grain.resize((width, height), Image.Resampling.BILINEAR)
        noise: Pixels = numpy.asarray(smooth, numpy.float32) / numpy.float32(64) - numpy.float32(2)
        return noise
    return numpy.zeros((height, width), numpy.float32)


def _signs(wave: NDArray[numpy.floating[Any]]) -> Pixels:
    signs: Pixels = numpy.sign(wave).astype(numpy.float32)
    return signs


def _draw_item(image: Image.Image, item: Item, rng: Generator) -> None:
    x0, y0, x1, y1 = item.box
    box = (x0 * image.width, y0 * image.height, x1 * image.width, y1 * image.height)
    ink = _ink(item.color, rng)
    if item.kind == "shape":
        ImageDraw.Draw(image).polygon(shapes.fitted(item.name, item.angle, box), fill=ink)
    elif item.kind == "handwritten":
        size = (max(1, round(box[2] - box[0])), max(1, round(box[3] - box[1])))
        mask = handwriting.mask(item.variant).resize(size, Image.Resampling.BICUBIC)
        image.paste(ink, (round(box[0]), round(box[1])), mask)
    else:
        _write(image, item, box, ink)


def _ink(color: str, rng: Generator) -> tuple[int, int, int]:
    spread = 6 if color in ("white", "black") else 14
    r, g, b = (int(numpy.clip(value + rng.uniform(-spread, spread), 0, 255)) for value in COLORS[color])
    return r, g, b


def _write(image: Image.Image, item: Item, box: tuple[float, ...], ink: tuple[int, int, int]) -> None:
    font, stroke = fonts.load(item.variant, fonts.size_for(item.name, item.variant, box[3] - box[1]))
    left, top, right, bottom = font.getbbox(item.name, stroke_width=stroke)
    x = (box[0] + box[2] - left - right) / 2
    y = (box[1] + box[3] - top - bottom) / 2
    ImageDraw.Draw(image).text((x, y), item.name, fill=ink, font=font, stroke_width=stroke)


def _photograph(image: Image.Image, rng: Generator) -> Image.Image:
    """What a camera adds: uneven light, blur, noise, compression."""
    blur, noise, jpeg = rng.random(3)
    shorter = min(image.size)
    if blur < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8) * shorter / 96))
    pixels = numpy.asarray(image, numpy.float32) * _light(image.width, image.height, rng)
    if noise < 0.5:
        pixels = pixels + rng.normal(0, rng.uniform(2, 14), (*pixels.shape[:2], 1)).astype(numpy.float32)
    image = Image.fromarray(pixels.clip(0, 255).astype(numpy.uint8))
    if jpeg < 0.35:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(35, 95)))
        image = Image.open(buffer).convert("RGB")
    return image


def _light(width: int, height: int, rng: Generator) -> Pixels:
    """(height, width, 1) factors around one, varying linearly over the picture."""
    overall, slope_x, slope_y = rng.uniform(0.9, 1.06), rng.uniform(-0.07, 0.07), rng.uniform(-0.07, 0.07)
    x = numpy.linspace(-1, 1, width, dtype=numpy.float32)[None, :, None]
    y = numpy.linspace(-1, 1, height, dtype=numpy.float32)[:, None, None]
    factors: Pixels = overall + slope_x * x + slope_y * y
    return factors
