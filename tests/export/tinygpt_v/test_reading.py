"""Published files to weights: LoRA by hand, and one line for everything that does not fit."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from edgevlm_export.families.moondream2.random_weights import make_tokenizer
from edgevlm_runtime.errors import CheckpointError, InvalidOption
from tests.export.tinygpt_v.conftest import Published, read

STAGE = "TinyGPT-V_for_Stage4.pth"
VISION = "eva_vit_g.pth"
QFORMER = "blip2_pretrained_flant5xxl.pth"
WRAPPED = "llama_model.base_model.model.model"


@pytest.fixture
def folder(stage_4: Published, tmp_path: Path) -> Path:
    """Files that a test may damage."""
    return Path(shutil.copytree(stage_4.folder, tmp_path / "published"))


def change(file: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    data = torch.load(file, weights_only=True)
    edit(data.get("model", data))
    torch.save(data, file)


def phi_tensors(folder: Path) -> dict[str, Tensor]:
    return {k: v for shard in (folder / "phi-2").glob("*.safetensors") for k, v in load_file(shard).items()}


def test_lora_is_merged_in_the_order_that_it_was_trained_in(stage_4: Published) -> None:
    """One element after the other, in float64: row 3 * head + part of the pair belongs to that head's part."""
    phi, trained = phi_tensors(stage_4.folder), torch.load(stage_4.folder / STAGE, weights_only=True)["model"]
    weights, dim, head_dim = read(stage_4.folder).weights, 160, 80
    key = f"{WRAPPED}.layers.1.self_attn.query_key_value"
    down, up = (trained[f"{key}.lora_{side}.weight"].double() for side in "AB")
    assert len(down) == 4
    merged = weights["text.blocks.1.attn.qkv.weight"].double()
    for j, name in enumerate(("q_proj", "k_proj", "v_proj")):
        base = phi[f"model.layers.1.self_attn.{name}.weight"].double()
        for head, row, column in ((0, 0, 0), (0, 79, 159), (1, 0, 7), (1, 41, 100)):
            source = (3 * head + j) * head_dim + row
            expected = base[head * head_dim + row, column] + 16 / 4 * (up[source] @ down[:, column])
            assert abs(merged[j * dim + head * head_dim + row, column] - expected) < 1e-5


def test_norms_of_the_stage_replace_those_of_phi(stage_4: Published) -> None:
    """Trained are only weights; biases are Phi-2's, and zero where Phi-2 has none."""
    phi, trained = phi_tensors(stage_4.folder), torch.load(stage_4.folder / STAGE, weights_only=True)["model"]
    weights = read(stage_4.folder).weights
    assert torch.equal(weights["text.blocks.0.ln.weight"], trained[f"{WRAPPED}.layers.0.input_layernorm.weight"])
    assert torch.equal(weights["text.blocks.0.ln.bias"], phi["model.layers.0.input_layernorm.bias"].float())
    assert torch.equal(weights["text.post_ln.weight"], trained[f"{WRAPPED}.final_layernorm.weight"])
    assert not weights["text.blocks.0.attn.q_ln.bias"].any()


def test_projections_are_folded(stage_4: Published) -> None:
    trained = torch.load(stage_4.folder / STAGE, weights_only=True)["model"]
    weights, x = read(stage_4.folder).weights, torch.randn(3, 128, dtype=torch.float64)
    y = x
    for name in ("llama_proj", "llama_proj2"):
        y = y @ trained[f"{name}.weight"].double().T + trained[f"{name}.bias"].double()
    folded = x @ weights["qformer.project.weight"].double().T + weights["qformer.project.bias"].double()
    assert torch.allclose(folded, y, atol=1e-5)


def test_phi_may_lie_beside_the_other_files_in_pickles(folder: Path, stage_4: Published) -> None:
    torch.save(phi_tensors(folder), folder / "pytorch_model.bin")
    for name in ("config.json", "tokenizer.json"):
        shutil.copyfile(folder / "phi-2" / name, folder / name)
    shutil.rmtree(folder / "phi-2")
    ours, theirs = read(folder).weights, read(stage_4.folder).weights
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_stage_is_in_the_name_or_given(folder: Path) -> None:
    assert read(folder).parts.image == read(folder, stage=4).parts.image
    shutil.copyfile(folder / STAGE, folder / STAGE.replace("4", "3"))
    with pytest.raises(CheckpointError, match=r"holds TinyGPT-V_for_Stage3.pth, TinyGPT-V_for_Stage4.pth; .*--stage"):
        read(folder)
    sides = [image.crop_px for stage in (3, 4) if (image := read(folder, stage=stage).parts.image) is not None]
    assert sides == [56, 112]
    (folder / STAGE.replace("4", "3")).unlink()
    (folder / STAGE).rename(folder / "mine.pth")
    with pytest.raises(CheckpointError, match=r"mine.pth: .*--stage"):
        read(folder)
    image = read(folder, stage=1).parts.image
    assert image is not None and image.crop_px == 56


def test_formats_belong_to_stages(stage_3: Published, stage_4: Published) -> None:
    with pytest.raises(InvalidOption, match="--prompts chat: stage 4 knows benchmark, inst, demo"):
        read(stage_4.folder, prompts="chat")
    with pytest.raises(InvalidOption, match="stage 3 knows chat, alignment"):
        read(stage_3.folder, prompts="inst")


@pytest.mark.parametrize("name", [STAGE, VISION, QFORMER, "phi-2", "phi-2/tokenizer.json", "phi-2/config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    said = str(caught.value)
    assert "\n" not in said and (path.name in said or "phi-2" in said)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [STAGE, VISION, QFORMER])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(CheckpointError, match=re.escape(name)):
        read(folder)


def _rename(old: str, new: str) -> Callable[[dict[str, Tensor]], Any]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[new] = tensors.pop(old)

    return edit


def _put(key: str, *shape: int) -> Callable[[dict[str, Tensor]], Any]:
    return lambda tensors: tensors.update({key: torch.zeros(shape)})


_LAYER = f"{WRAPPED}.layers.1"


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        (STAGE, lambda t: t.pop(f"{_LAYER}.self_attn.dense.lora_B.weight"), "dense.lora_A.weight has no other half"),
        (
            STAGE,
            lambda t: [t.pop(f"{_LAYER}.self_attn.dense.lora_{s}.weight") for s in "AB"],
            "LoRA of model.layers.1.self_attn.dense is missing",
        ),
        (STAGE, lambda t: t.pop(f"{_LAYER}.post_layernorm.weight"), "model.layers.1.post_layernorm.weight is missing"),
        (STAGE, lambda t: t.pop(f"{_LAYER}.self_attn.q_layernorm.weight"), "q_layernorm.weight is missing"),
        (STAGE, lambda t: t.pop("llama_proj2.bias"), "llama_proj2.bias is missing"),
        (STAGE, _put("llama_proj3.weight", 2, 2), "unknown (llama_proj3.weight)"),
        (STAGE, _put(f"{WRAPPED}.layers.7.post_layernorm.weight", 160), "layers.7.post_layernorm.weight"),
        (STAGE, _put(f"{WRAPPED}.layers.1.mlp.fc1.lora_A.weight", 4, 160), "fc1.lora_A.weight has no other half"),
        (STAGE, _put(f"{_LAYER}.post_layernorm.bias", 160), "unknown"),
        (
            STAGE,
            lambda t: t.update({f"{_LAYER}.self_attn.dense.lora_{s}.default.weight": torch.zeros(4, 160) for s in "A"}),
            "is there twice",
        ),
        (STAGE, _put(f"{_LAYER}.self_attn.dense.lora_A.weight", 4, 96), "lora_A.weight: has shape (4, 96)"),
        (STAGE, _put("llama_proj2.weight", 160, 95), "llama_proj2.weight: has shape (160, 95)"),
        (VISION, lambda t: t.pop("blocks.0.attn.v_bias"), "blocks.0.attn.v_bias is missing"),
        (VISION, _put("blocks.0.gamma", 176), "unknown (blocks.0.gamma)"),
        (VISION, _put("pos_embed", 1, 12, 176), "pos_embed has 12 positions"),
        (VISION, _put("patch_embed.proj.weight", 100, 3, 14, 14), "100 channels wide, which heads of 88"),
        (QFORMER, lambda t: t.pop("query_tokens"), "query_tokens is missing"),
        (QFORMER, lambda t: t.pop("ln_vision.bias"), "ln_vision.bias is missing"),
        (
            QFORMER,
            _rename(
                "Qformer.bert.encoder.layer.1.output_query.dense.bias",
                "Qformer.bert.encoder.layer.1.output_query.dense.b",
            ),
            "output_query.dense.bias is missing",
        ),
        (QFORMER, _put("Qformer.bert.pooler.weight", 2), "unknown (Qformer.bert.pooler.weight)"),
    ],
)
def test_what_does_not_fit_is_named(
    folder: Path, file: str, edit: Callable[[dict[str, Tensor]], Any], said: str
) -> None:
    change(folder / file, edit)
    with pytest.raises(CheckpointError) as caught:
        read(folder)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_attention_heads", None, "num_attention_heads is None"),
        ("num_attention_heads", 3, "does not divide"),
        ("num_hidden_layers", 5, "num_hidden_layers is 5, expected 2"),
        ("partial_rotary_factor", 0.3, "24 dimensions of a head turn"),
        ("layer_norm_eps", 1e-6, "layer_norm_eps"),
        ("model_type", "llama", "no Phi-2 in it"),
    ],
)
def test_config_json_must_be_phis(folder: Path, key: str, value: object, said: str) -> None:
    path = folder / "phi-2" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, key: value}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(said)):
        read(folder)


def test_trained_parts_of_the_image_encoder_count(folder: Path) -> None:
    """Whoever trained them too, and saved them, gets them."""
    change(folder / STAGE, lambda tensors: tensors.update({"ln_vision.bias": torch.full((176,), 7.0)}))
    assert (read(folder).weights["vision.post_ln.bias"] == 7).all()


def test_a_tokenizer_of_another_model_is_refused(folder: Path) -> None:
    make_tokenizer(300).save(str(folder / "phi-2" / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="has no token '###'"):
        read(folder)
