"""Shrunken TinyGPT-V in the published layouts, and transformers' own reading of them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from edgevlm_export.families.family import ReadOptions, Recipe
from edgevlm_export.families.tinygpt_v import TinyGptVFamily
from edgevlm_export.families.tinygpt_v.random_weights import TINY, write_shrunken
from edgevlm_export.modules.tinygpt_v import TinyGptV, TinyGptVConfig
from edgevlm_export.weights import replace_parameters
from tests.oracles.tinygpt_v_transformers import TinyGptVOracle


class Published(NamedTuple):
    """A folder of published files, and what it must give."""

    folder: Path
    oracle: TinyGptVOracle


@pytest.fixture(scope="session")
def stage_4(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Phi-2 split, adapters as peft 0.2 names them."""
    folder = tmp_path_factory.mktemp("tinygpt_v") / "stage4"
    write_shrunken(folder, seed=3)
    return Published(folder, make_oracle(folder))


@pytest.fixture(scope="session")
def stage_3(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Phi-2 fused, adapters as newer versions of peft name them."""
    folder = tmp_path_factory.mktemp("tinygpt_v") / "stage3"
    write_shrunken(folder, stage=3, layout="fused", adapter=".default", seed=4)
    return Published(folder, make_oracle(folder))


def make_oracle(folder: Path, config: TinyGptVConfig = TINY) -> TinyGptVOracle:
    vision, text = config.vision, config.text
    return TinyGptVOracle(
        folder,
        n_vision=vision.n_layers,
        n_blocks=text.n_layers,
        n_heads=text.n_heads,
        vision_heads=vision.n_heads,
    )


def read(folder: Path, *, stage: int | None = None, prompts: str | None = None) -> Recipe:
    family, options = TinyGptVFamily(), ReadOptions(stage=stage, prompts=prompts)
    return family.read(family.open(folder, options), options)


def load_module(recipe: Recipe) -> TinyGptV:
    """The module with all its weights, in float32."""
    module = recipe.build()
    replace_parameters(module, lambda name, _: recipe.weights[name])
    assert isinstance(module, TinyGptV)
    return module.eval().requires_grad_(False)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest absolute difference over the largest absolute value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())
