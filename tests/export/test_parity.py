"""The torch module against two independent oracles: plain NumPy, and transformers' SigLIP and Phi."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config, prefix_mask
from tests.export.shrunken import CONFIGS, build, sizes
from tests.oracles.moondream2_numpy import Oracle
from tests.oracles.moondream2_transformers import phi, siglip

Case = tuple[Moondream2, dict[str, Tensor], Oracle]


@pytest.fixture(params=sorted(CONFIGS), scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    config = CONFIGS[request.param]
    module, tensors = build(config, seed=7)
    return module, tensors, Oracle(sizes(config), {name: t.numpy() for name, t in tensors.items()})


def relative_error(ours: Tensor, theirs: npt.NDArray[Any]) -> float:
    """The largest absolute difference over the largest absolute value."""
    assert tuple(ours.shape) == theirs.shape
    return float(np.abs(ours.numpy() - theirs).max() / np.abs(theirs).max())


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def crops_of(config: Moondream2Config, n_crops: int) -> Tensor:
    return draw(n_crops, 3, config.vision.crop_size, config.vision.crop_size).clamp(-1, 1)


def run_text(module: Moondream2, embeddings: Tensor, n_prefix: int) -> Tensor:
    n_tokens = embeddings.shape[0]
    mask = prefix_mask(n_tokens, n_prefix)
    return module.text.hidden(embeddings[None], torch.arange(n_tokens), mask)[0]


def test_vision_agrees_with_numpy(case: Case) -> None:
    module, _, oracle = case
    crops = crops_of(module.config, 3)
    assert relative_error(module.vision.encode(crops), oracle.encode(crops.numpy())) < 1e-5


def test_vision_agrees_with_transformers(case: Case) -> None:
    module, tensors, _ = case
    config = module.config.vision
    peer = siglip(
        tensors,
        n_layers=config.enc_n_layers,
        n_heads=config.enc_n_heads,
        patch=config.enc_patch_size,
        crop=config.crop_size,
    )
    crops = crops_of(module.config, 2)
    with torch.no_grad():
        theirs = peer(pixel_values=crops).last_hidden_state
    assert relative_error(module.vision.encode(crops), theirs.numpy()) < 1e-5


def test_projection_agrees_with_numpy(case: Case) -> None:
    module, _, oracle = case
    config = module.config.vision
    features = draw(1, config.n_patches, 2 * config.enc_dim)
    assert relative_error(module.vision.project(features)[0], oracle.project(features[0].numpy())) < 1e-5


@pytest.mark.parametrize("n_prefix", [0, 1, 11])
def test_text_agrees_with_numpy(case: Case, n_prefix: int) -> None:
    module, _, oracle = case
    embeddings = draw(19, module.config.text.dim)
    hidden = run_text(module, embeddings, n_prefix)
    expected = oracle.hidden(embeddings.numpy(), n_prefix)
    assert relative_error(hidden, expected) < 1e-5
    assert relative_error(module.text.logits(hidden), oracle.logits(expected)) < 1e-5


def test_norms_of_faint_inputs(case: Case) -> None:
    """Where the variance is as small as the norms' epsilon, it counts."""
    module, _, oracle = case
    embeddings = draw(5, module.config.text.dim) * 3e-3
    assert relative_error(run_text(module, embeddings, 2), oracle.hidden(embeddings.numpy(), 2)) < 1e-5


def test_no_mask_is_causal(case: Case) -> None:
    module, _, oracle = case
    embeddings = draw(9, module.config.text.dim)
    hidden = module.text.hidden(embeddings[None], torch.arange(9), None)[0]
    assert relative_error(hidden, oracle.hidden(embeddings.numpy(), 0)) < 1e-5


def test_text_agrees_with_transformers(case: Case) -> None:
    module, tensors, _ = case
    config = module.config.text
    peer = phi(tensors, n_layers=config.n_layers, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads)
    embeddings, n_prefix = draw(21, config.dim), 13
    bias = torch.zeros(21, 21).masked_fill(~prefix_mask(21, n_prefix), -1e9)
    with torch.no_grad():
        theirs = peer(inputs_embeds=embeddings[None], attention_mask=bias[None, None]).logits[0]
    assert relative_error(module.text.logits(run_text(module, embeddings, n_prefix)), theirs.numpy()) < 1e-5


def test_sequences_of_a_batch_at_their_own_positions(case: Case) -> None:
    """Positions may be given per sequence; neighbors in a batch change nothing."""
    module, _, oracle = case
    embeddings = draw(2, 8, module.config.text.dim)
    positions = torch.stack([torch.arange(8), torch.arange(8)])
    hidden = module.text.hidden(embeddings, positions, prefix_mask(8, 5))
    for ours, one in zip(hidden, embeddings, strict=True):
        assert relative_error(ours, oracle.hidden(one.numpy(), 5)) < 1e-5


def test_prefix_mask_by_its_definition() -> None:
    mask = prefix_mask(7, 3)
    for query in range(7):
        for key in range(7):
            assert bool(mask[query, key]) == (key <= query or (query < 3 and key < 3))


def test_regions_agree_with_numpy(case: Case) -> None:
    module, _, oracle = case
    region = module.region
    coordinates, box_sizes = torch.linspace(0, 1, 6)[:, None], torch.rand(5, 2)
    hidden = draw(4, module.config.text.dim)
    assert relative_error(region.encode_coordinate(coordinates), oracle.encode_coordinate(coordinates.numpy())) < 1e-5
    assert relative_error(region.encode_size(box_sizes), oracle.encode_size(box_sizes.numpy())) < 1e-5
    assert relative_error(region.decode_coordinate(hidden), oracle.decode_coordinate(hidden.numpy())) < 1e-5
    assert relative_error(region.decode_size(hidden), oracle.decode_size(hidden.numpy())) < 1e-5


def test_greedy_tokens_agree_with_numpy(case: Case) -> None:
    module, _, oracle = case
    n_prefix, prompt = 10, [3, 1, 4]
    prefix = draw(n_prefix, module.config.text.dim)
    expected = oracle.greedy(prefix.numpy(), prompt, max_tokens=8, eos_id=0, suppressed_ids=(3,))
    ids: list[int] = []
    while len(ids) < 8:
        embeddings = torch.cat([prefix, module.text.embed(torch.tensor(prompt + ids))])
        logits = module.text.logits(run_text(module, embeddings, n_prefix)[-1])
        if ids:
            logits[3] = -torch.inf
        if (token := int(logits.argmax())) == 0:
            break
        ids.append(token)
    assert ids == expected and len(ids) > 2


@pytest.mark.parametrize(
    "damage",
    [
        "text.blocks.1.attn.qkv.weight",
        "text.blocks.0.mlp.fc2.bias",
        "vision.blocks.1.ln2.weight",
        "vision.pos_emb",
        "region.size_features",
    ],
)
def test_the_comparison_notices_one_changed_tensor(damage: str) -> None:
    """The oracle reads every kind of tensor: a module that has one of them 1 % off does not pass."""
    config = CONFIGS["grouped"]
    module, tensors = build(config, seed=7)
    oracle = Oracle(sizes(config), {name: (t * 1.01 if name == damage else t).numpy() for name, t in tensors.items()})
    crops, embeddings, box_sizes = crops_of(config, 1), draw(6, config.text.dim), torch.rand(3, 2)
    errors = (
        relative_error(module.vision.encode(crops), oracle.encode(crops.numpy())),
        relative_error(run_text(module, embeddings, 3), oracle.hidden(embeddings.numpy(), 3)),
        relative_error(module.region.encode_size(box_sizes), oracle.encode_size(box_sizes.numpy())),
    )
    assert max(errors) > 1e-5
