"""Random checkpoints in timm's published layout: tiny ones for tests, full-size ones to measure speed.

Their activations are those of a trained model in kind: batch norms have the statistics of images, layer scales and
attention biases are of a size that matters.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgevlm_export.calibration_images import calibration_images
from edgevlm_export.families.timm_backbone.library import build, default_config
from edgevlm_export.weights import replace_parameters
from edgevlm_runtime.manifest import ImageSpec
from edgevlm_runtime.preprocess import prepare_image

_PUBLISHED = (
    *("tag", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("num_classes", "pool_size", "first_conv", "classifier"),
)
_IMAGES = 8  # in one batch of those that batch norms see
_SHRUNKEN: dict[str, Any] = {"layers": (1, 1, 1, 1), "embed_dims": (32, 32, 64, 64), "mlp_ratios": (2, 2, 2, 2)}


def write_shrunken(out: Path) -> None:
    """A FastViT of 0.1 million parameters for images of 64 px and 10 classes, with an attention stage."""
    write_random(out, "fastvit_sa12", side=64, num_classes=10, **_SHRUNKEN)


def write_random(
    out: Path,
    variant: str,
    *,
    side: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    **model_args: Any,
) -> None:
    """model.safetensors in float32 and config.json, as timm publishes them.

    `variant` is a model of timm, with a pretrained tag or without. `side` is that of its images in pixels; None, as
    for `num_classes`, takes the variant's own.
    """
    where = str(out)
    architecture = variant.partition(".")[0]
    config = default_config(variant, where)
    config["num_classes"] = config.get("num_classes", 0) if num_classes is None else num_classes
    if side is not None:
        config["input_size"] = (3, side, side)
    module = build(architecture, config["num_classes"], model_args, where)
    randomize(module, config["input_size"][1], torch.Generator().manual_seed(seed))
    out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, out / "model.safetensors")
    published = {
        "architecture": architecture,
        "num_classes": config["num_classes"],
        "num_features": module.num_features,
        **({"model_args": model_args} if model_args else {}),
        "pretrained_cfg": {key: config[key] for key in _PUBLISHED if config.get(key) is not None},
    }
    (out / "config.json").write_text(json.dumps(published, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def randomize(module: nn.Module, side: int, generator: torch.Generator) -> None:
    """New weights in place, then batch norms' statistics from images (images, 3, side, side) that pass through."""
    replace_parameters(module, lambda name, parameter: _random(name, parameter, generator))
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches
        norm.train()
    for batch in drawn_images(side).split(_IMAGES) if norms else ():
        module(batch)
    module.eval()


def random_images(images: int, side: int, generator: torch.Generator) -> Tensor:
    """Normalized images (images, 3, side, side): colored patches, as photographs are smooth, and some noise."""
    coarse = torch.randn(images, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    return smooth + 0.2 * torch.randn(images, 3, side, side, generator=generator)


def drawn_images(side: int) -> Tensor:
    """The drawn scenes that exports calibrate on, normalized (images, 3, side, side)."""
    spec = ImageSpec(crop_px=side, resample="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3)
    return torch.from_numpy(np.stack([prepare_image(pixels, spec) for pixels in calibration_images(None)]))


def _random(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Sizes at which a network answers an error with one of its size: larger norms would multiply it layer by layer."""
    shape = parameter.shape
    if "gamma" in name:  # a layer scale
        return 0.1 + 0.2 * torch.rand(shape, generator=generator)
    if name.endswith("weight") and len(shape) == 1:  # a norm
        return 0.2 + 0.3 * torch.rand(shape, generator=generator)
    if "bias" in name:  # of a layer, or of attention by position
        return 0.1 * torch.randn(shape, generator=generator)
    fan_in = math.prod(shape[1:])
    return torch.randn(shape, generator=generator) * math.sqrt(1.6 / max(fan_in, 1))
