"""What an export looks at, the same on every machine: a drawn image and prompts about it to verify the bundle on.

To calibrate it there are another image and other words, so that verification is of what was not yet seen.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import product

import numpy as np
from PIL import Image, ImageDraw

from edgevlm_export.reference import Sample
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.manifest import PromptSpec, Role
from edgevlm_runtime.prompts import Prompts
from edgevlm_runtime.tokenizer import TextTokenizer

WIDTH, HEIGHT = 640, 480  # wide enough that every tiling cuts it

_OPEN_QUESTIONS = (
    "What is in this picture?",
    "Describe the image in detail.",
    "What shapes do you see, and where are they?",
    "What colors are in the image?",
    "What is in the background?",
    "What is at the left?",
    "What is at the right?",
    "How many objects are there?",
)
_COLORS = ("red", "blue", "green", "yellow", "white", "black")
_SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
_ASKED = ("Is there a {color} {shape}?", "How many {color} {shape}s are there?", "Where is the {color} {shape}?")
_SEEN = "Two boats on a lake at dawn; behind them hills and a pale sky."
_CONVERSATIONS = (
    ("What is the weather like?", "It is a bright day with a few clouds."),
    ("Who is in the photograph?", "A woman in a coat, with 2 dogs."),
    ("What does the sign say?", 'It says "OPEN 9:30 - 17:00" in bold letters.'),
    ("Is this indoors?", "No"),
)


def draw_image() -> bytes:
    """A PNG of plain shapes on a gradient, 640 x 480."""
    down, right = np.mgrid[0:HEIGHT, 0:WIDTH]
    shades = np.stack((170 + right // 10, 160 + down // 8, 210 - right // 16), axis=-1)
    image = Image.fromarray(shades.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.ellipse((60, 70, 230, 240), fill=(214, 39, 40))
    pen.rectangle((330, 60, 470, 200), fill=(31, 119, 180))
    pen.polygon(((180, 430), (270, 270), (360, 430)), fill=(44, 160, 44))
    pen.ellipse((430, 270, 590, 430), fill=(255, 215, 0), outline=(60, 60, 60), width=6)
    pen.line((20, 460, 620, 450), fill=(90, 50, 20), width=9)
    encoded = io.BytesIO()
    image.save(encoded, format="PNG", optimize=True)
    return encoded.getvalue()


def draw_texture() -> Pixels:
    """Pixels (height, width, 3) to calibrate on: waves from coarse to fine, and grain, unlike the plain shapes."""
    down, right = np.mgrid[0:WIDTH, 0:HEIGHT] / HEIGHT
    waves = [np.sin(40 * right * down * (1 + channel)) * down for channel in range(3)]
    grain = np.random.default_rng(0).standard_normal((WIDTH, HEIGHT, 3)) * 0.25
    return ((np.stack(waves, axis=-1) + grain).clip(-1, 1) * 127 + 128).astype(np.uint8)


def conversations(spec: PromptSpec, composer: Prompts, tokenizer: TextTokenizer) -> Iterator[Sample]:
    """Prompts and answers to calibrate on, of every kind that the model knows."""
    for prompt in spec.captions.values():
        yield Sample(prompt=prompt, answer=(*tokenizer.encode(_SEEN), spec.eos_id))
    for question, answer in _CONVERSATIONS:
        yield Sample(prompt=composer.query(question).ids, answer=(*tokenizer.encode(answer), spec.eos_id))
    for template in (spec.detect, spec.point):
        if template is not None:
            yield Sample(prompt=composer.locate(template, "boat").ids, answer=(spec.eos_id,))


def region_inputs(hidden: FloatArray) -> dict[Role, FloatArray]:
    """What the region graphs are given: as many places, spread over the image, as there are hidden states (n, dim)."""
    places = np.linspace(0.05, 0.95, len(hidden), dtype=np.float32)
    return {
        "region_coordinate_encoder": places[:, None],
        "region_size_encoder": np.stack((places, places[::-1]), axis=-1),
        "region_coordinate_decoder": hidden,
        "region_size_decoder": hidden,
    }


def prompts(spec: PromptSpec, composer: Prompts) -> Iterator[tuple[int, ...]]:
    """Prompts to follow the image, those with long answers first."""
    yield from spec.captions.values()
    for question in _questions():
        yield composer.query(question).ids


def _questions() -> Iterator[str]:
    yield from _OPEN_QUESTIONS
    for shape, color, asked in product(_SHAPES, _COLORS, _ASKED):
        yield asked.format(color=color, shape=shape)
