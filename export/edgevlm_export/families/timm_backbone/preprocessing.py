"""From image to input, as whoever evaluated the checkpoint did it: the manifest's ImageSpec and a sentence about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from edgevlm_export.families.timm_backbone.description import Description
from edgevlm_export.families.timm_backbone.layouts import Origin
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import CenterCropSpec, ImageSpec

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_DEFAULTS: Mapping[str, Any] = {
    **_IMAGENET,
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
_TINY_VIT_SIDE = 224  # TinyViT's authors crop at this side, and squash at the larger ones
_TINY_VIT_SHORTEST = 256


def read_image_spec(description: Description, origin: Origin, where: str) -> tuple[ImageSpec, str]:
    """The specification, and what it is and where it comes from in words.

    Raises:
        CheckpointError: the model takes no square color images, or wants them in a way that is not supported.
    """
    settings = _settings(description, origin)
    side = _side(settings, where)
    mean, std = _triple(settings, "mean", where), _triple(settings, "std", where)
    crop = _center_crop(settings, side, where)
    resample = _resample(settings, where)
    spec = ImageSpec(crop_px=side, resample=resample, mean=mean, std=std, center_crop=crop)
    resized = f"squashed to {side} px" if crop is None else f"shorter side to {crop.shortest_px} px, center {side} px"
    return spec, f"{_source(description, origin)}: {resized}, {resample}"


def _settings(description: Description, origin: Origin) -> dict[str, Any]:
    known = {key: value for key, value in description.pretrained.items() if value is not None}
    settings = {**_DEFAULTS, **known}
    if origin == "tiny_vit" and not description.published:
        crops = settings["input_size"][-1] == _TINY_VIT_SIDE
        settings["crop_mode"] = "center" if crops else "squash"
        settings["crop_pct"] = _TINY_VIT_SIDE / _TINY_VIT_SHORTEST if crops else 1.0
    return settings


def _source(description: Description, origin: Origin) -> str:
    if description.published:
        return "the checkpoint's config.json"
    if origin == "tiny_vit":
        return "TinyViT's authors"
    if origin == "apple":
        return "Apple, as in timm's record of the model"
    return "timm's record of the model"


def _side(settings: Mapping[str, Any], where: str) -> int:
    size = settings["input_size"]
    if not isinstance(size, list | tuple) or len(size) != 3 or size[0] != 3 or size[1] != size[2] or size[1] < 1:
        raise CheckpointError(f"{where}: input_size is {size!r}, but only square color images are supported")
    return int(size[1])


def _triple(settings: Mapping[str, Any], key: str, where: str) -> tuple[float, ...]:
    values = settings[key]
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise CheckpointError(f"{where}: {key} is {values!r}, expected 3 numbers")
    return tuple(float(value) for value in values)


def _center_crop(settings: Mapping[str, Any], side: int, where: str) -> CenterCropSpec | None:
    mode, fraction = settings["crop_mode"], settings["crop_pct"]
    if mode == "squash" and fraction == 1.0:
        return None
    if mode != "center" or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        raise CheckpointError(f"{where}: crop_mode {mode!r} with crop_pct {fraction!r} is not supported")
    return CenterCropSpec(shortest_px=math.floor(side / fraction), rounding="half_even")


def _resample(settings: Mapping[str, Any], where: str) -> Any:
    name = settings["interpolation"]
    if name not in ("bicubic", "bilinear", "lanczos"):
        raise CheckpointError(
            f"{where}: interpolation {name!r} is not supported; expected bicubic, bilinear or lanczos"
        )
    return name
