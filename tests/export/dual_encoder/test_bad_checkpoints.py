"""CLIP and SigLIP checkpoints that can not be read: one line that says what and where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families import FAMILIES
from edgevlm_export.families.family import ReadOptions
from edgevlm_runtime.errors import CheckpointError
from tests.export.dual_encoder.specimens import edit_json, read


def rename(tensors: dict[str, torch.Tensor]) -> None:
    tensors["visual_projection.kernel"] = tensors.pop("visual_projection.weight")


def truncate(tensors: dict[str, torch.Tensor]) -> None:
    name = "text_model.encoder.layers.1.mlp.fc1.weight"
    tensors[name] = tensors[name][:50].contiguous()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rename, r"1 missing \(visual_projection.weight\) and 1 unknown \(visual_projection.kernel\)"),
        (truncate, r"layers.1.mlp.fc1.weight has shape \(50, 48\), expected \(96, 48\)"),
    ],
)
def test_tensors_that_do_not_fit(
    copy: Callable[[str], Path], damage: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    folder = copy("clip")
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_values_that_are_not_finite(copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "logit_scale": torch.tensor(1e9)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor logit_scale: is 1e\+09, expected at most 100"):
        read(folder)
    tensors["visual_projection.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor visual_projection.weight: has values that are not finite"):
        read(folder).graphs[0].trace(False)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "config.json"])
def test_a_missing_file_is_named(copy: Callable[[str], Path], family: str, name: str) -> None:
    folder = copy(family)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{folder / name}: no such file"):
        FAMILIES[family].read(open_checkpoint(folder), ReadOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_rescale": False}, "do_rescale is False"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"rescale_factor": 0.5}, "rescale_factor is 0.5, expected 1 / 255"),
        ({"resample": 0}, r"resample is 0, expected one of 1 \(lanczos\), 2 \(bilinear\), 3 \(bicubic\)"),
        ({"size": {"shortest_edge": 24}}, "smaller than crop_size 32"),
        ({"size": {"height": 32, "width": 48}}, "expected a square"),
        ({"crop_size": {"height": 24, "width": 24}}, "makes images of 24 pixels, config.json says 32"),
        ({"do_center_crop": False}, "without do_center_crop"),
        ({"image_mean": 0.5}, "image_mean is 0.5, expected 3 numbers"),
        ({"image_std": [1, 0, 1]}, "image_std has a zero"),
        ({"image_processor_type": "Pix2StructImageProcessor"}, "'Pix2StructImageProcessor' is not known here"),
    ],
)
def test_preprocessing_that_can_not_be_done(copy: Callable[[str], Path], changes: dict[str, Any], message: str) -> None:
    folder = copy("clip")
    edit_json(folder / "preprocessor_config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        read(folder)


def test_configs_that_do_not_fit(copy: Callable[[str], Path], family: str) -> None:
    folder = copy(family)
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "num_attention_heads": 5})
    with pytest.raises(CheckpointError, match=r"config.json: vision can not be built .*divisible"):
        read(folder)
    edit_json(folder / "config.json", vision_config={**config["vision_config"], "num_channels": 1})
    with pytest.raises(CheckpointError, match=r"images are 32 x 1 channels"):
        read(folder)
    edit_json(folder / "config.json", model_type="siglip2")
    with pytest.raises(CheckpointError, match=f"model_type is 'siglip2', expected '{family}'"):
        FAMILIES[family].read(open_checkpoint(folder), ReadOptions())


def test_tokenizers_of_other_models(copy: Callable[[str], Path], folders: dict[str, Path]) -> None:
    clip, siglip = copy("clip"), folders["siglip"]
    with pytest.raises(CheckpointError, match=r"ends a text with 1, the model looks for 519"):
        read(clip, tokenizer=siglip / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"has 520 tokens, the model \d+"):
        read(siglip, tokenizer=clip / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(clip / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A", pair=None, special_tokens=[])
    tokenizer.save(str(clip / "tokenizer.json"))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: ends a text with 'a</w>'"):
        read(clip)
