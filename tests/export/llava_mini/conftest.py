"""Shrunken LLaVA-Mini checkpoints, their bundles in float32, and the oracle of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer

from edgevlm_export import text_pipeline
from edgevlm_export.families.llava_mini.random_weights import TINY, write_random
from edgevlm_export.modules.llava_mini import LlavaMiniConfig
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import LoadOptions
from tests.export.conftest import skip_verification
from tests.oracles.llava_mini_transformers import PLACEHOLDER, Oracle

SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
CONFIGS: dict[str, LlavaMiniConfig] = {
    "one token": TINY,
    "four tokens": replace(TINY, compressor_size=2, vision=replace(TINY.vision, dim=256, n_heads=4)),
    "high resolution": replace(TINY, compressor_size=2, resolution_ratio=2),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model: as it is published, as it runs, and as it should."""

    config: LlavaMiniConfig
    folder: Path
    bundle: Path
    model: Model
    oracle: Oracle

    def prompt(self, question: str, *, image: bool = True) -> list[int]:
        """A prompt's ids as the published code makes them: each side of the image by itself."""
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        text = (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
            f"Today Date: 26 Jul 2024\n\n{SYSTEM}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            f"{'<image>' + chr(10) if image else ''}{question}<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        )
        first, *rest = (tokenizer.encode(chunk).ids for chunk in text.split("<image>"))
        assert first[0] == first[1], "the beginning is doubled"
        return [*first, *(token for ids in rest for token in (PLACEHOLDER, *ids[1:]))]


def make_case(root: Path, config: LlavaMiniConfig) -> Case:
    """Write, export and open one."""
    write_random(root / "checkpoint", config)
    bundle = root / "bundle"
    request = ExportRequest(name="tiny", family="llava_mini", source=root / "checkpoint", out=bundle, precision="fp32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_pipeline, "verify_export", skip_verification)
        export(request)
    folder = root / "checkpoint"
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "vision_tower" / "model.safetensors")
    tower = json.loads((folder / "vision_tower" / "config.json").read_text())["vision_config"]
    oracle = Oracle(json.loads((folder / "config.json").read_text()), tensors, tower)
    return Case(
        config=config, folder=folder, bundle=bundle, model=load(bundle, LoadOptions(image_memory_mb=0)), oracle=oracle
    )


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Case]]:
    """A case by its name, made once."""
    cases: dict[str, Case] = {}

    def make_once(name: str) -> Case:
        if name not in cases:
            cases[name] = make_case(tmp_path_factory.mktemp("llava_mini"), CONFIGS[name])
        return cases[name]

    yield make_once
    for made in cases.values():
        made.model.close()


@pytest.fixture(params=sorted(CONFIGS), scope="session")
def case(request: pytest.FixtureRequest, make: Callable[[str], Case]) -> Case:
    """Each of the configurations."""
    return make(request.param)


@pytest.fixture(scope="session")
def one(make: Callable[[str], Case]) -> Case:
    """The one that leaves one token of an image."""
    return make("one token")


@pytest.fixture(scope="session")
def photos() -> list[npt.NDArray[np.uint8]]:
    """Images (height, width, 3) of all shapes: wide, tall, small, of odd sides."""
    rng = np.random.default_rng(5)
    shapes = ((90, 131), (75, 61), (56, 56), (33, 300))
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]
