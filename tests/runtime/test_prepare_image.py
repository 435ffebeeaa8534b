"""prepare_image against torchvision's rules written down again, and against transformers' processors, bit by bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm_export.torchvision_operators import declare_missing_operators
from edgevlm_runtime.manifest import CenterCropSpec, ImageSpec
from edgevlm_runtime.preprocess import prepare_image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SQUASH = ImageSpec(crop_px=24, resample="bicubic", mean=MEAN, std=STD)
CROP = replace(SQUASH, center_crop=CenterCropSpec(shortest_px=27, rounding="half_even"))
SIZES = st.tuples(st.integers(1, 150), st.integers(1, 150))


@pytest.fixture(scope="module")
def transformers() -> Any:
    """transformers, whose image processors import torchvision although they compute without it."""
    declare_missing_operators()
    return pytest.importorskip("transformers")


def noise(size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(size[0] * 1000 + size[1]).integers(0, 256, (*size, 3), dtype=np.uint8)


def to_tensor(image: Image.Image) -> npt.NDArray[np.float32]:
    """torchvision's ToTensor and Normalize: all in float32, one operation after the other."""
    values = np.asarray(image).transpose(2, 0, 1).astype(np.float32)
    values /= np.float32(255)
    values -= np.array(MEAN, np.float32)[:, None, None]
    values /= np.array(STD, np.float32)[:, None, None]
    return values


def torchvision_center(image: Image.Image, shortest: int, side: int, filter_: Image.Resampling) -> Image.Image:
    """Resize(shortest) and CenterCrop(side), as torchvision computes their sizes."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = shortest, int(shortest * long / short)
    width, height = (new_short, new_long) if width <= height else (new_long, new_short)
    image = image.resize((width, height), filter_)
    top = round((height - side) / 2.0)
    left = round((width - side) / 2.0)
    return image.crop((left, top, left + side, top + side))


@settings(max_examples=150)
@given(SIZES, st.integers(24, 40), st.sampled_from(["bicubic", "bilinear", "lanczos"]))
def test_center_crop_is_torchvisions(
    size: tuple[int, int], shortest: int, resample: Literal["bicubic", "bilinear", "lanczos"]
) -> None:
    pixels = noise(size)
    spec = replace(CROP, resample=resample, center_crop=CenterCropSpec(shortest_px=shortest, rounding="half_even"))
    prepared = prepare_image(pixels, spec)
    assert prepared.shape == (3, 24, 24) and prepared.dtype == np.float32
    if max(size) <= 64 * min(size):
        wanted = torchvision_center(Image.fromarray(pixels), shortest, 24, Image.Resampling[resample.upper()])
        np.testing.assert_array_equal(prepared, to_tensor(wanted))


@settings(max_examples=60)
@given(SIZES)
def test_squash_is_torchvisions(size: tuple[int, int]) -> None:
    pixels = noise(size)
    wanted = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(prepare_image(pixels, SQUASH), to_tensor(wanted))


@settings(max_examples=60)
@given(size=SIZES, shortest=st.integers(24, 40))
def test_center_crop_is_transformers(transformers: Any, size: tuple[int, int], shortest: int) -> None:
    pixels = noise(size)
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": shortest}, crop_size={"height": 24, "width": 24}, image_mean=MEAN, image_std=STD
    )
    spec = replace(CROP, center_crop=CenterCropSpec(shortest_px=shortest, rounding="floor"))
    if max(size) <= 64 * min(size):
        wanted = processor(Image.fromarray(pixels), return_tensors="np", input_data_format="channels_last")[
            "pixel_values"
        ][0]
        np.testing.assert_array_equal(prepare_image(pixels, spec), wanted)


@pytest.mark.parametrize(("kind", "resample"), [("ViT", "bilinear"), ("Siglip", "bicubic")])
@pytest.mark.parametrize("size", [(24, 24), (1, 70), (61, 47), (100, 23)])
def test_squash_is_transformers(
    transformers: Any, kind: str, resample: Literal["bicubic", "bilinear"], size: tuple[int, int]
) -> None:
    processor = getattr(transformers, f"{kind}ImageProcessor")(
        size={"height": 24, "width": 24}, image_mean=MEAN, image_std=STD
    )
    wanted = processor(Image.fromarray(noise(size)), return_tensors="np", input_data_format="channels_last")[
        "pixel_values"
    ][0]
    np.testing.assert_array_equal(prepare_image(noise(size), replace(SQUASH, resample=resample)), wanted)


def test_the_two_roundings_differ() -> None:
    # Shortest 27, square 24: three pixels are left over, two before it or one.
    floor = replace(CROP, center_crop=CenterCropSpec(shortest_px=27, rounding="floor"))
    pixels = np.zeros((27, 27, 3), np.uint8)
    pixels[:, 1] = 255
    assert prepare_image(pixels, floor)[0, 0].argmax() == 0
    assert np.ptp(prepare_image(pixels, CROP)) == np.ptp(prepare_image(np.zeros_like(pixels), CROP))


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1), (2, 999_999)])
def test_of_a_long_strip_only_the_middle_is_scaled(size: tuple[int, int]) -> None:
    # Scaled as a whole it would have 27 x 27 million pixels.
    pixels = np.zeros((*size, 3), np.uint8)
    middle = max(size) // 2
    np.moveaxis(pixels, int(np.argmax(size)), 0)[middle - 50 : middle + 50] = 255
    prepared = prepare_image(pixels, CROP)
    np.testing.assert_array_equal(prepared, prepare_image(np.full((30, 30, 3), 255, np.uint8), CROP))
