"""Checkpoints of TinyViT's authors and of Apple, by their own names, against the formulas on these tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgevlm_export.checkpoint import open_checkpoint
from edgevlm_export.families.timm_backbone.layouts import canonical
from edgevlm_export.families.timm_backbone.library import build
from edgevlm_runtime.engines import Array
from edgevlm_runtime.errors import CheckpointError
from tests.export.timm_backbone.backbones import SIDE, images, only_graph, read, write_config, write_pickle
from tests.oracles import fastvit_torch, tiny_vit_torch

Tensors = dict[str, Tensor]
PRETRAINED = {"input_size": [3, SIDE, SIDE]}
TINY_VIT = {
    "embed_dims": tiny_vit_torch.DIMS,
    "num_heads": tiny_vit_torch.HEADS,
    "window_sizes": tiny_vit_torch.WINDOWS,
    "depths": (1, 1, 1, 1),
}
FASTVIT = {"layers": (1, 1, 1, 1), "embed_dims": fastvit_torch.DIMS, "mlp_ratios": (2, 2, 2, 2)}


@pytest.fixture(scope="module")
def apple() -> Tensors:
    return fastvit_torch.Specimen().tensors


@pytest.fixture(scope="module")
def authors() -> Tensors:
    return tiny_vit_torch.Specimen().tensors


def test_tiny_vit_of_its_authors(authors: Tensors, tmp_path: Path) -> None:
    write_config(tmp_path, "tiny_vit_5m_224", model_args=TINY_VIT, pretrained_cfg=PRETRAINED)
    write_pickle(tmp_path / "tiny_vit.pth", authors, "model")
    check(tmp_path, tiny_vit_torch.forward, authors)


@pytest.mark.parametrize("change", [dict, fastvit_torch.fold], ids=["unfolded", "folded"])
def test_fastvit_of_apple(apple: Tensors, change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    write_config(tmp_path, "fastvit_sa12", model_args=FASTVIT, pretrained_cfg=PRETRAINED)
    write_pickle(tmp_path / "fastvit.pth.tar", change(apple), "state_dict")
    check(tmp_path, fastvit_torch.forward, apple)


@pytest.mark.parametrize("fold", [False, True], ids=["unfolded", "folded"])
def test_image_tower_inside_mobileclip(apple: Tensors, fold: bool, tmp_path: Path) -> None:
    """Its projection is (in, out) and has no bias; the text tower is not of interest."""
    tower = fastvit_torch.fold(apple) if fold else dict(apple)
    del tower["head.bias"]
    tower["head.proj"] = tower.pop("head.weight").T.contiguous()
    whole = {f"image_encoder.model.{name}": value for name, value in tower.items()}
    save_file({**whole, "logit_scale": torch.ones(()), "text_encoder.x": torch.ones(3)}, tmp_path / "m.safetensors")
    write_config(tmp_path, "fastvit_sa12", model_args=FASTVIT, pretrained_cfg={**PRETRAINED, "tag": "apple_mclip"})
    recipe = read(tmp_path)
    inputs = images(2)
    without_bias = {**apple, "head.bias": torch.zeros(fastvit_torch.CLASSES)}
    assert only_graph(recipe).role == "vision" and recipe.parts.tasks == ("embed",)
    expected = fastvit_torch.forward(without_bias, torch.from_numpy(inputs))[0]
    close(only_graph(recipe).reference({"images": inputs})["embeddings"], expected)


def test_tower_of_open_clip(apple: Tensors, tmp_path: Path) -> None:
    """timm's own names behind a prefix."""
    (tmp_path / "plain").mkdir()
    write_config(tmp_path / "plain", "fastvit_sa12", model_args=FASTVIT, pretrained_cfg=PRETRAINED)
    write_pickle(tmp_path / "plain" / "a.pt", apple, "state_dict")
    tensors = canonical(open_checkpoint(tmp_path / "plain")).tensors
    whole = {f"module.visual.trunk.{name}": weight.read() for name, weight in tensors.items()}
    save_file({**whole, "module.text.x": torch.ones(3)}, tmp_path / "model.safetensors")
    write_config(tmp_path, "fastvit_sa12", model_args=FASTVIT, pretrained_cfg=PRETRAINED)
    check(tmp_path, fastvit_torch.forward, apple)


@pytest.mark.parametrize("attention_stage", [3, 4])
def test_every_name_of_five_stages_is_known(attention_stage: int, tmp_path: Path) -> None:
    """MobileCLIP2's larger towers attend in two stages, each after a position encoding."""
    module = build(
        "fastvit_mci3",
        0,
        {"layers": (1,) * 5, "embed_dims": (16, 32, 32, 64, 64), "mlp_ratios": (2,) * 5},
        "here",
    )
    # stage, PE, stage, PE, stage, PE, CPE, stage, PE, CPE, stage
    places = {3: (5, 6, 7), 4: (8, 9, 10)}[attention_stage]
    names = {
        f"network.{places[0]}.proj.0.lkb_origin.conv.weight": "downsample.proj.0.large_conv.conv.weight",
        f"network.{places[1]}.pe.bias": "pos_emb.pos_enc.bias",
        f"network.{places[2]}.0.token_mixer.qkv.weight": "blocks.0.token_mixer.qkv.weight",
        f"network.{places[2]}.0.layer_scale_2": "blocks.0.layer_scale_2.gamma",
    }
    others = [f"network.{i}.proj.1.rbr_skip.bias" for i in (1, 3, 5, 8)] + ["patch_embed.0.rbr_conv.0.conv.weight"]
    save_file({name: torch.ones(1) for name in (*names, *others)}, tmp_path / "model.safetensors")
    renamed = canonical(open_checkpoint(tmp_path)).tensors
    expected = {f"stages.{attention_stage}.{name}" for name in names.values()}
    assert expected <= renamed.keys() & module.state_dict().keys()


def test_two_names_of_one_tensor_are_refused(authors: Tensors, tmp_path: Path) -> None:
    both = {**authors, "patch_embed.conv1.conv.weight": authors["patch_embed.seq.0.c.weight"].clone()}
    save_file(both, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"are both patch_embed\.conv1\.conv\.weight; remove one"):
        canonical(open_checkpoint(tmp_path))


def check(path: Path, forward: Callable[[Tensors, Tensor], tuple[Tensor, Tensor]], tensors: Tensors) -> None:
    """The recipe's own module against the formulas on the tensors as published."""
    inputs = images(2)
    found = only_graph(read(path)).reference({"images": inputs})
    logits, features = forward(tensors, torch.from_numpy(inputs))
    close(found["logits"], logits)
    close(found["features"], features)


def close(found: Array, expected: Tensor) -> None:
    assert np.abs(found - expected.numpy()).max() < 2e-5 * float(expected.abs().max())
