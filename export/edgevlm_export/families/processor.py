"""preprocessor_config.json of the transformers package: from an image to the values that a model was trained on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgevlm_export.checkpoint import read_json
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import CenterCropSpec, ImageSpec

PREPROCESSOR = "preprocessor_config.json"
_FILTERS: dict[int, Literal["lanczos", "bilinear", "bicubic"]] = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's
_RESCALE_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Processor:
    """One of transformers' image processors: what it takes where the file is silent, and whether it crops."""

    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crops: bool


_HALVES = (0.5, 0.5, 0.5)
_CLIP = Processor(
    resample=3, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711), crops=True
)
_PROCESSORS = {
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "Siglip": Processor(resample=3, mean=_HALVES, std=_HALVES, crops=False),
    "ViT": Processor(resample=2, mean=_HALVES, std=_HALVES, crops=False),
}


def read_image_spec(folder: Path, default: str, side: int) -> ImageSpec:
    """What the folder's preprocessor_config.json asks for; `default` is the processor where it names none.

    Raises:
        CheckpointError: it is missing or asks for something else than resize, crop, rescale and normalize to `side`.
    """
    path = folder / PREPROCESSOR
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; download it from where the model was published")
    data = read_json(path)
    processor = _find_processor(path, data, default)
    _check_steps(path, data)
    crop_px, center_crop = _geometry(path, data, processor)
    if crop_px != side:
        raise CheckpointError(f"{path}: makes images of {crop_px} pixels, config.json says {side}")
    return ImageSpec(
        crop_px=crop_px,
        resample=_filter(path, data.get("resample", processor.resample)),
        mean=_channels(path, "image_mean", data.get("image_mean", processor.mean)),
        std=_channels(path, "image_std", data.get("image_std", processor.std)),
        center_crop=center_crop,
    )


def _find_processor(path: Path, data: dict[str, Any], default: str) -> Processor:
    named = data.get("image_processor_type") or data.get("feature_extractor_type") or default
    name = re.sub(r"(ImageProcessor(Fast)?|FeatureExtractor)$", "", str(named))
    if name not in _PROCESSORS:
        known = ", ".join(_PROCESSORS)
        raise CheckpointError(f"{path}: image processor {named!r} is not known here; known are those of {known}")
    return _PROCESSORS[name]


def _check_steps(path: Path, data: dict[str, Any]) -> None:
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if data.get(step, True) is not True:
            raise CheckpointError(f"{path}: {step} is {data[step]!r}; only models whose images take this step can run")
    factor = data.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > _RESCALE_TOLERANCE:
        raise CheckpointError(f"{path}: rescale_factor is {factor!r}, expected 1 / 255")


def _geometry(path: Path, data: dict[str, Any], processor: Processor) -> tuple[int, CenterCropSpec | None]:
    """Side of the square, and how to crop to it where the image is not squeezed into it."""
    size = data.get("size", 224)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size if processor.crops else None
    if shortest is None:
        side = _square(path, "size", size)
        if _crops(data, processor) and _square(path, "crop_size", data.get("crop_size", side)) != side:
            raise CheckpointError(f"{path}: crop_size {data['crop_size']} differs from size {size}")
        return side, None
    if not _crops(data, processor):
        raise CheckpointError(f"{path}: size {size} without do_center_crop gives images that are not square")
    crop = _square(path, "crop_size", data.get("crop_size", 224))
    if type(shortest) is not int or shortest < crop:
        raise CheckpointError(f"{path}: size {size} is smaller than crop_size {crop}")
    return crop, CenterCropSpec(shortest_px=shortest, rounding="floor")


def _crops(data: dict[str, Any], processor: Processor) -> bool:
    return processor.crops and data.get("do_center_crop", True) is True


def _square(path: Path, name: str, size: object) -> int:
    if isinstance(size, dict) and size.get("height") == size.get("width"):
        size = size.get("height")
    if type(size) is not int or size < 1:
        raise CheckpointError(f"{path}: {name} is {size}, expected a square")
    return size


def _filter(path: Path, code: object) -> Literal["lanczos", "bilinear", "bicubic"]:
    if not isinstance(code, int) or code not in _FILTERS:
        known = ", ".join(f"{number} ({name})" for number, name in _FILTERS.items())
        raise CheckpointError(f"{path}: resample is {code!r}, expected one of {known}")
    return _FILTERS[code]


def _channels(path: Path, name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise CheckpointError(f"{path}: {name} is {values!r}, expected 3 numbers")
    if name == "image_std" and not all(values):
        raise CheckpointError(f"{path}: {name} has a zero")
    return tuple(map(float, values))
