"""The torch module, read from published files, against transformers' classes that read them by their own keys."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from edgevlm_export.families.tinygpt_v.random_weights import write_shrunken
from edgevlm_export.scene import draw_image
from edgevlm_runtime.image import load_image
from edgevlm_runtime.preprocess import make_crops
from tests.export.tinygpt_v.conftest import Published, load_module, make_oracle, read, relative_error
from tests.oracles.tinygpt_v_transformers import TinyGptVOracle


@pytest.fixture(params=["stage_3", "stage_4"])
def published(request: pytest.FixtureRequest) -> Published:
    found: Published = request.getfixturevalue(request.param)
    return found


def pixels_of(oracle: TinyGptVOracle) -> torch.Tensor:
    return oracle.pixels(Image.open(io.BytesIO(draw_image())))


def test_images_are_squeezed_into_the_square(published: Published) -> None:
    image = read(published.folder).parts.image
    assert image is not None
    crops, _ = make_crops(load_image(draw_image()), image)
    assert relative_error(torch.from_numpy(crops), pixels_of(published.oracle)) < 1e-6


def test_features_have_the_class_token_and_only_one_norm(published: Published) -> None:
    pixels = pixels_of(published.oracle)
    features = load_module(read(published.folder)).vision.encode(pixels)
    n_patches = (published.oracle.side // 14) ** 2
    assert features.shape == (1, 1 + n_patches, 176)
    assert relative_error(features, published.oracle.features(pixels)) < 1e-5


def test_image_tokens(published: Published) -> None:
    features = published.oracle.features(pixels_of(published.oracle))
    tokens = load_module(read(published.folder)).qformer(features)[0]
    assert relative_error(tokens, published.oracle.image_tokens(features)) < 1e-5


def test_logits_of_every_position(published: Published) -> None:
    text = load_module(read(published.folder)).text
    sequence = torch.randn(40, 160, generator=torch.Generator().manual_seed(1))
    hidden = text.hidden(sequence[None], torch.arange(40), None)[0]
    assert relative_error(text.logits(hidden), published.oracle.logits(sequence)) < 1e-5


def test_layouts_of_one_model_are_one_model(tmp_path: Path) -> None:
    """Fused and split, and both names of adapters; the numbers are read to the bit."""
    write_shrunken(tmp_path / "split")
    write_shrunken(tmp_path / "fused", layout="fused", adapter=".default")
    split, fused = (read(tmp_path / name).weights for name in ("split", "fused"))
    assert set(split) == set(fused)
    for name in split:
        assert torch.equal(split[name], fused[name]), name


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("TinyGPT-V_for_Stage4.pth", "llama_model.base_model.model.model.layers.1.self_attn.dense.lora_B.weight"),
        ("TinyGPT-V_for_Stage4.pth", "llama_model.base_model.model.model.layers.0.post_layernorm.weight"),
        ("TinyGPT-V_for_Stage4.pth", "llama_model.base_model.model.model.layers.1.self_attn.k_layernorm.weight"),
        ("TinyGPT-V_for_Stage4.pth", "llama_proj.bias"),
        ("blip2_pretrained_flant5xxl.pth", "Qformer.bert.encoder.layer.2.crossattention.self.value.bias"),
        ("blip2_pretrained_flant5xxl.pth", "ln_vision.weight"),
        ("eva_vit_g.pth", "blocks.1.attn.v_bias"),
        ("eva_vit_g.pth", "pos_embed"),
    ],
)
def test_the_comparison_notices_one_changed_tensor(tmp_path: Path, file: str, key: str) -> None:
    write_shrunken(tmp_path)
    before = make_oracle(tmp_path)
    data = torch.load(tmp_path / file, weights_only=True)
    tensors = data.get("model", data)
    tensors[key] = tensors[key] + 0.05 * torch.randn(tensors[key].shape, generator=torch.Generator().manual_seed(0))
    torch.save(data, tmp_path / file)
    module, pixels = load_module(read(tmp_path)), pixels_of(before)
    features = module.vision.encode(pixels)
    tokens = module.qformer(features)[0]
    logits = module.text.logits(module.text.hidden(tokens[None], torch.arange(len(tokens)), None)[0])
    assert relative_error(logits, before.logits(before.image_tokens(before.features(pixels)))) > 1e-4
