"""config.json, eras and tokenizers: what the published files say, and what they leave out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edgevlm_export.checkpoint import Checkpoint, LazyWeight
from edgevlm_export.families.family import ReadOptions, Recipe
from edgevlm_export.families.moondream2 import Moondream2Family
from edgevlm_export.families.moondream2.config import SIZE_05B, SIZE_2B, nested_config, read_sizes
from edgevlm_export.families.moondream2.eras import GPT2_LINEAR
from edgevlm_export.families.moondream2.random_weights import TINY, TINY_ERA, make_tokenizer, write_random
from edgevlm_export.modules.moondream2 import Moondream2, Moondream2Config
from edgevlm_export.weights import module_shapes
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.manifest import PromptSpec, SamplingSpec, Template
from tests.export.conftest import read_recipe
from tests.export.specimens import gpt2_tokenizer, training_key, write_layout, write_published

# What the reference's repository publishes for the 0.5B model: no n_kv_heads.
CONFIG_05B: dict[str, Any] = {
    "text": {
        "dim": 1024, "ff_dim": 4096, "n_layers": 24, "vocab_size": 51200, "max_context": 2048, "n_heads": 16,
        "prefix_attn": 730,
    },
    "vision": {
        "enc_dim": 720, "enc_patch_size": 14, "enc_n_layers": 27, "enc_ff_dim": 2690, "enc_n_heads": 10,
        "proj_out_dim": 1024, "crop_size": 378, "in_channels": 3, "max_crops": 12, "overlap_margin": 4,
        "proj_inner_dim": 8192,
    },
    "region": {
        "dim": 1024, "coord_feat_dim": 256, "coord_out_dim": 1024, "size_feat_dim": 512, "size_out_dim": 2048,
        "inner_dim": 8192,
    },
    "tokenizer": {
        "bos_id": 50256,
        "eos_id": 50256,
        "templates": {
            "caption": {"short": [198, 198, 16438, 8305, 25], "normal": [198, 198, 24334, 1159, 25]},
            "query": {"prefix": [198, 198, 24361, 25], "suffix": [198, 198, 33706, 25]},
            "detect": {"prefix": [198, 198, 47504, 25], "suffix": [628]},
            "point": {"prefix": [198, 198, 12727, 25], "suffix": [628]},
        },
    },
}  # fmt: skip


def shapes_only(config: Moondream2Config) -> dict[str, LazyWeight]:
    with torch.device("meta"):
        shapes = module_shapes(Moondream2(config))
    return {name: _unread(name, shape) for name, shape in shapes.items()}


def _unread(name: str, shape: tuple[int, ...]) -> LazyWeight:
    def read() -> Tensor:
        raise AssertionError(f"{name} was read")

    return LazyWeight(origin=name, shape=shape, read=read)


@pytest.fixture(scope="session")
def starmie(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers") / "starmie.json"
    make_tokenizer(51200).save(str(path))
    return path


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers") / "gpt2.json"
    gpt2_tokenizer().save(str(path))
    return path


def read_published(
    folder: Path, tensors: dict[str, LazyWeight], tokenizer: Path, revision: str | None = None, **config: Any
) -> Recipe:
    """A full-size checkpoint of which only names and shapes exist."""
    (folder / "config.json").write_text(json.dumps({"model_type": "moondream1", **config}))
    return Moondream2Family().read(Checkpoint(folder, tensors), ReadOptions(revision=revision, tokenizer=tokenizer))


def prompt_of(recipe: Recipe) -> PromptSpec:
    assert recipe.parts.prompt is not None
    return recipe.parts.prompt


def size_scale_of(recipe: Recipe) -> str:
    assert recipe.parts.region is not None
    return recipe.parts.region.size_scale


def test_the_published_2b_checkpoint(tmp_path: Path, starmie: Path) -> None:
    tensors = {f"model.{name}": weight for name, weight in shapes_only(SIZE_2B).items()}
    recipe = read_published(tmp_path, tensors, starmie, "2025-06-21", config={})
    assert len(recipe.weights) == 592
    assert sum(math.prod(recipe.weights.shape(name)) for name in recipe.weights) == 1_927_237_104
    prompt = prompt_of(recipe)
    assert (prompt.bos_id, prompt.eos_id, prompt.suppressed_ids) == (0, 0, (3,))
    assert prompt.captions == {
        "short": (1, 32708, 2, 12492, 3),
        "normal": (1, 32708, 2, 6382, 3),
        "long": (1, 32708, 2, 4059, 3),
    }
    assert prompt.query == Template(prefix=(1, 15381, 2), suffix=(3, 3))  # twice, as released
    assert prompt.detect == Template(prefix=(1, 7235, 476, 2), suffix=(3,))
    assert prompt.point == Template(prefix=(1, 2581, 2), suffix=(3,))
    assert (prompt.object_prefix, prompt.question_prefix) == (" ", "")
    assert (prompt.spatial_point, prompt.spatial_box) == ((5, 5), (5, 5, 6))
    reasoning = prompt.reasoning
    assert reasoning is not None
    assert reasoning.template == Template(prefix=(1, 15381, 2), suffix=(3, 4))
    assert (reasoning.answer_prompt, reasoning.answer_id, reasoning.coordinate_id) == ((3,), 3, 5)
    assert (reasoning.ground_start_id, reasoning.ground_end_id, reasoning.suppressed_ids) == (7, 9, (0, 6))
    assert size_scale_of(recipe) == "log"
    assert recipe.parts.sampling == SamplingSpec(max_tokens=768, temperature=0.5, top_p=0.3)
    image, cache = recipe.parts.image, recipe.parts.cache
    assert image is not None and image.tiling is not None and cache is not None
    tiling = image.tiling
    assert (image.crop_px, tiling.patch_px, tiling.margin_patches, tiling.max_crops) == (378, 14, 4, 12)
    assert (cache.n_layers, cache.n_kv_heads, cache.head_dim, cache.max_context) == (24, 32, 64, 2048)


def test_the_published_05b_config_means_as_many_key_heads_as_heads(tmp_path: Path, gpt2: Path) -> None:
    tensors = shapes_only(SIZE_05B)
    assert tensors["text.blocks.0.attn.qkv.weight"].shape == (3072, 1024)
    recipe = read_published(tmp_path, tensors, gpt2, config=CONFIG_05B)
    assert recipe.parts.cache is not None and recipe.parts.cache.n_kv_heads == 16
    prompt = prompt_of(recipe)
    assert prompt.query == Template(prefix=(198, 198, 24361, 25), suffix=(198, 198, 33706, 25))
    assert (set(prompt.captions), prompt.reasoning, prompt.suppressed_ids) == ({"short", "normal"}, None, ())
    assert (prompt.object_prefix, prompt.spatial_point) == ("", ())
    assert size_scale_of(recipe) == "linear"


def test_sizes_are_told_by_shapes_where_config_is_empty() -> None:
    for config in (SIZE_2B, SIZE_05B):
        assert read_sizes(nested_config({"config": {}}), shapes_only(config)) == config
        assert read_sizes(nested_config({}), shapes_only(config)) == config


def test_every_size_of_a_nested_config_is_read() -> None:
    config = replace(TINY, text=replace(TINY.text, max_context=512), vision=replace(TINY.vision, max_crops=3))
    assert read_sizes(nested_config({"config": asdict(config)}), {}) == config
    assert read_sizes(nested_config(asdict(config)), {}) == config


def test_what_old_files_leave_out_is_derived() -> None:
    assert read_sizes({"text": {"dim": 1024, "n_heads": 16}, **_half("vision", "region")}, {}) == SIZE_05B
    with_groups = {"text": {"dim": 1024, "n_heads": 16, "group_size": 128}, **_half("vision", "region")}
    assert read_sizes(with_groups, {}) == SIZE_05B


def _half(*parts: str) -> dict[str, Any]:
    return {part: CONFIG_05B[part] for part in parts}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"text": {"n_head": 32}}, "text.n_head; the nearest known one is n_heads"),
        ({"vison": {}}, None),
        ({"config": {"vison": {}}}, "vison; the nearest known one is vision"),
        ({"text": {"dim": "2048"}}, "text.dim is '2048'"),
        ({"text": {"n_layers": True}}, "text.n_layers"),
        ({"text": {"dim": 2048, "n_heads": 48}}, "multiple of 32"),
        ({"text": {"dim": 1024, "n_heads": 16}}, "proj_out_dim must equal text.dim"),
        ({"vision": {"crop_size": 380}}, "crop_size must be a multiple"),
        ({"vision": {"crop_size": 392}}, "prefix_attn must be 1 + patches"),
        ({"text": [1]}, "text must be an object"),
    ],
)
def test_config_that_can_not_be_right(config: dict[str, Any], words: str | None) -> None:
    if words is None:  # not the model's: the hub's own keys stand at the top
        assert nested_config(config) == {}
        return
    with pytest.raises(CheckpointError) as caught:
        read_sizes(nested_config(config), {})
    assert words in str(caught.value)


def test_the_grid_does_not_depend_on_layers(tmp_path: Path) -> None:
    config = replace(TINY, vision=replace(TINY.vision, enc_n_layers=3))
    write_random(tmp_path, config, TINY_ERA)
    recipe = read_recipe(tmp_path)
    assert recipe.weights.shape("vision.pos_emb") == (1, 25, 48)
    assert recipe.graphs[0].outputs[0].shape == ("crops", 25, 48)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a revision's reference code does."""

    scale: str
    question_prefix: str
    object_prefix: str
    max_tokens: int
    eos_id: int = 50256


LINEAR = Expected(scale="linear", question_prefix="", object_prefix="", max_tokens=512)
LOG = Expected(scale="log", question_prefix=" ", object_prefix=" ", max_tokens=768)
CURRENT = Expected(scale="log", question_prefix="", object_prefix=" ", max_tokens=768, eos_id=0)


@pytest.mark.parametrize(
    ("revision", "expected"),
    [
        ("2024-08-26", LINEAR),
        ("2025-01-09", LINEAR),
        ("2025-03-27", LOG),
        ("2025-04-14", LOG),
        ("2025-06-21", CURRENT),
    ],
)
def test_a_revision_decides_the_era(
    tmp_path: Path, starmie: Path, gpt2: Path, revision: str, expected: Expected
) -> None:
    tokenizer = gpt2 if expected.eos_id else starmie
    recipe = read_published(tmp_path, shapes_only(SIZE_2B), tokenizer, revision)
    prompt, sampling = prompt_of(recipe), recipe.parts.sampling
    assert sampling is not None
    assert expected == Expected(
        scale=size_scale_of(recipe),
        question_prefix=prompt.question_prefix,
        object_prefix=prompt.object_prefix,
        max_tokens=sampling.max_tokens,
        eos_id=prompt.eos_id,
    )


def test_a_four_bit_checkpoint_is_of_april_2025(tmp_path: Path, gpt2: Path) -> None:
    tensors = shapes_only(SIZE_2B)
    matrix = "text.blocks.0.mlp.fc1.weight"
    n_groups = math.prod(tensors.pop(matrix).shape) // 128
    tensors[f"{matrix}.packed"] = _unread("packed", (n_groups // 2, 128))
    tensors |= {f"{matrix}.{part}": _unread(part, (n_groups, 1)) for part in ("scale", "zero_point")}
    recipe = read_published(tmp_path, tensors, gpt2, "main")
    assert recipe.weights.shape(matrix) == (8192, 2048)
    assert (size_scale_of(recipe), prompt_of(recipe).eos_id) == ("log", 50256)
    assert set(prompt_of(recipe).captions) == {"short", "normal", "long"}


def test_a_stale_tokenizer_beside_a_starmie_checkpoint_is_refused(tmp_path: Path, gpt2: Path, starmie: Path) -> None:
    tensors = shapes_only(SIZE_2B)
    (tmp_path / "tokenizer.json").write_bytes(gpt2.read_bytes())
    for revision in ("2025-06-21", None):
        with pytest.raises(CheckpointError) as caught:
            Moondream2Family().read(Checkpoint(tmp_path, tensors), ReadOptions(revision=revision))
        message = str(caught.value)
        assert str(tmp_path / "tokenizer.json") in message
        assert "moondream/starmie-v1" in message and "--tokenizer" in message
    recipe = Moondream2Family().read(Checkpoint(tmp_path, tensors), ReadOptions(tokenizer=starmie))
    assert recipe.tokenizer == starmie


def test_a_starmie_tokenizer_for_a_gpt2_checkpoint_is_refused(tmp_path: Path, starmie: Path) -> None:
    with pytest.raises(CheckpointError, match=r"50256.*2025-01-09"):
        read_published(tmp_path, shapes_only(SIZE_2B), starmie, "2025-01-09")


def test_a_tokenizer_that_spells_other_words_is_refused(tmp_path: Path) -> None:
    data = json.loads(gpt2_tokenizer().to_str())
    vocab = data["model"]["vocab"]
    vocab["Question"], vocab["Answer"] = vocab["Answer"], vocab["Question"]
    path = tmp_path / "other.json"
    Tokenizer.from_str(json.dumps(data)).save(str(path))
    with pytest.raises(CheckpointError, match="spells the prompt"):
        read_published(tmp_path, shapes_only(SIZE_2B), path, "2025-01-09")


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 3}'])
def test_a_damaged_tokenizer_is_one_line(tmp_path: Path, tiny: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_recipe(tiny, tokenizer=path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_tokenizer_says_what_to_give(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="--tokenizer"):
        read_recipe(tiny, tokenizer=tmp_path / "none.json")


@pytest.mark.parametrize("text", ["[]", "{", '{"config": 3}'])
def test_a_damaged_config_is_one_line(tmp_path: Path, tiny: Path, tensors: dict[str, Tensor], text: str) -> None:
    folder = write_layout(write_published, tmp_path / "damaged", tensors, beside=tiny)
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_recipe(folder)


def test_templates_of_config_are_read(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    folder = write_layout(write_published, tmp_path / "templates", tensors, beside=tiny)
    data = json.loads((folder / "config.json").read_text())
    data["config"]["tokenizer"]["templates"] |= {"detect": None, "point": {"prefix": [1, 9], "suffix": [2]}}
    data["config"]["tokenizer"]["answer_id"] = 8
    (folder / "config.json").write_text(json.dumps(data))
    recipe = read_recipe(folder)
    assert recipe.parts.tasks == ("caption", "query", "point")
    assert prompt_of(recipe).point == Template(prefix=(1, 9), suffix=(2,))
    assert prompt_of(recipe).suppressed_ids == (8,)


def test_config_outweighs_a_supposed_revision(tmp_path: Path, gpt2: Path) -> None:
    """`--from FOLDER` keeps the catalog's revision, which is not the folder's."""
    recipe = read_published(tmp_path, shapes_only(SIZE_05B), gpt2, "2025-06-21", config=CONFIG_05B)
    assert (prompt_of(recipe).reasoning, size_scale_of(recipe)) == (None, "linear")


@pytest.mark.parametrize(
    ("templates", "words"),
    [
        ({"querry": {}}, "nearest known one is query"),
        ({"query": {"prefix": [1]}}, "prefix and suffix"),
        ({"caption": {"short": 3}}, "list of token ids"),
        ({"caption": {"short": [-1]}}, "token id"),
        ({"point": {"prefix": [511, 600], "suffix": []}}, "no token 600"),
    ],
)
def test_templates_that_can_not_be_right(
    tiny: Path, tmp_path: Path, tensors: dict[str, Tensor], templates: dict[str, Any], words: str
) -> None:
    folder = write_layout(write_published, tmp_path / "templates", tensors, beside=tiny)
    data = json.loads((folder / "config.json").read_text())
    data["config"]["tokenizer"]["templates"] |= templates
    (folder / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=words):
        read_recipe(folder)


def test_the_training_layout_has_the_published_table() -> None:
    """The writer of specimens is itself held to some lines of the table."""
    table = {
        "vision.blocks.3.ln2.bias": "vision_encoder.encoder.model.visual.blocks.3.norm2.bias",
        "vision.blocks.3.attn.qkv.weight": "vision_encoder.encoder.model.visual.blocks.3.attn.qkv.weight",
        "text.blocks.7.attn.qkv.weight": "text_model.transformer.h.7.mixer.Wqkv.weight",
        "text.blocks.7.attn.proj.bias": "text_model.transformer.h.7.mixer.out_proj.bias",
        "text.blocks.7.mlp.fc1.weight": "text_model.transformer.h.7.mlp.fc1.weight",
        "text.blocks.7.ln.weight": "text_model.transformer.h.7.ln.weight",
        "region.coord_decoder.fc2.bias": "region_model.coordinate_decoder.fc2.bias",
        "region.size_features": "region_model.size_features.weight",
    }
    assert {name: training_key(name) for name in table} == table
    assert GPT2_LINEAR.templates.query.prefix == (198, 198, 24361, 25)
