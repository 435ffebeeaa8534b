"""From image to input, bit by bit as timm's transforms, or those of TinyViT's authors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from edgevlm_export.families.timm_backbone.description import describe
from edgevlm_export.families.timm_backbone.layouts import Origin
from edgevlm_export.families.timm_backbone.library import default_config, import_timm
from edgevlm_export.families.timm_backbone.preprocessing import read_image_spec
from edgevlm_runtime.manifest import ImageSpec
from edgevlm_runtime.preprocess import prepare_image

SIZES = ((300, 401), (517, 260), (224, 224), (90, 61), (1200, 235))
VARIANTS = (
    "tiny_vit_5m_224.dist_in22k_ft_in1k",
    "tiny_vit_21m_384.dist_in22k_ft_in1k",
    "tiny_vit_21m_512.dist_in22k_ft_in1k",
    "fastvit_t8.apple_in1k",
    "fastvit_ma36.apple_in1k",
    "fastvit_mci0.apple_mclip2_dfndr2b",
    "fastvit_mci3.apple_mclip2_dfndr2b",
    "resnet18.a1_in1k",
    "mobilenetv3_small_100.lamb_in1k",
)


def pixels(width: int, height: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def published(variant: str) -> dict[str, Any]:
    """config.json as the hub has it."""
    return {"architecture": variant.partition(".")[0], "pretrained_cfg": default_config(variant, "here")}


def spec_of(variant: str, origin: Origin = "timm") -> tuple[ImageSpec, str]:
    return read_image_spec(describe({}, variant, "here"), origin, "here")


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_timm_does(variant: str) -> None:
    data = import_timm().data
    settings = data.resolve_data_config(pretrained_cfg=default_config(variant, "here"))
    transform = data.create_transform(**settings)
    spec, source = read_image_spec(describe(published(variant), None, "here"), "timm", "here")
    assert source.startswith("the checkpoint's config.json: ")
    for width, height in SIZES:
        array = pixels(width, height)
        expected: torch.Tensor = transform(Image.fromarray(array))
        np.testing.assert_array_equal(prepare_image(array, spec), expected.numpy())


@pytest.mark.parametrize("side", [224, 384, 512])
def test_as_tiny_vits_authors_do(side: int) -> None:
    """Their build_transform: 256 to 224 where cropped, else the whole image squashed."""
    import_timm()
    from torchvision import transforms  # type: ignore[import-untyped]

    bicubic = transforms.InterpolationMode.BICUBIC
    resize = [transforms.Resize(int(256 / 224 * side), bicubic), transforms.CenterCrop(side)]
    if side != 224:
        resize = [transforms.Resize((side, side), bicubic)]
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = transforms.Compose([*resize, transforms.ToTensor(), normalize])
    size = "5m" if side == 224 else "21m"
    spec, source = spec_of(f"tiny_vit_{size}_{side}.dist_in22k_ft_in1k", "tiny_vit")
    assert source.startswith("TinyViT's authors: ")
    for width, height in SIZES:
        array = pixels(width, height)
        expected: torch.Tensor = transform(Image.fromarray(array))
        np.testing.assert_array_equal(prepare_image(array, spec), expected.numpy())


def test_the_origin_decides() -> None:
    variant = "tiny_vit_5m_224.dist_in22k_ft_in1k"
    assert spec_of(variant)[1] == "timm's record of the model: shorter side to 235 px, center 224 px, bicubic"
    assert spec_of(variant, "tiny_vit")[1] == "TinyViT's authors: shorter side to 256 px, center 224 px, bicubic"
    squashed = spec_of("tiny_vit_21m_384.dist_in22k_ft_in1k", "tiny_vit")
    assert squashed[1] == "TinyViT's authors: squashed to 384 px, bicubic" and squashed[0].center_crop is None
    assert spec_of("fastvit_sa24", "apple")[1].endswith("shorter side to 284 px, center 256 px, bicubic")


def test_a_config_of_its_own_comes_before_the_origin() -> None:
    description = describe(published("tiny_vit_5m_224.in1k"), None, "here")
    assert "235" in read_image_spec(description, "tiny_vit", "here")[1]
