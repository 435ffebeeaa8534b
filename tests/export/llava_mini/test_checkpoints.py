"""Every layout of a checkpoint and of its tower gives the same weights; what is wrong or missing is named in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgevlm_export.checkpoint import HubSource
from edgevlm_export.families.family import ReadOptions, Recipe
from edgevlm_export.families.llava_mini import LlavaMiniFamily
from edgevlm_export.families.llava_mini.layouts import TOWER
from edgevlm_export.families.llava_mini.random_weights import FULL, TINY, write_shrunken
from edgevlm_export.modules.llama import LlamaLayers
from edgevlm_runtime.errors import CheckpointError

Edit = Callable[[dict[str, Any]], object]


def read(folder: Path, **options: Any) -> Recipe:
    family, given = LlavaMiniFamily(), ReadOptions(**options)
    return family.read(family.open(folder, given), given)


def message(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shrunken checkpoint."""
    out = tmp_path_factory.mktemp("checkpoints") / "tiny"
    write_shrunken(out, compressor_size=2)
    return out


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Tensor]:
    weights = read(folder).weights
    return {name: weights[name] for name in weights}


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(path: Path, change: Edit) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(file: Path, change: Edit) -> None:
    tensors: dict[str, Any] = dict(load_file(file))
    change(tensors)
    save_file(tensors, file)


def tower_of(folder: Path) -> dict[str, Tensor]:
    return {
        name.removeprefix("vision_model."): tensor
        for name, tensor in load_file(folder / "vision_tower" / "model.safetensors").items()
    }


def same(recipe: Recipe, expected: dict[str, Tensor]) -> bool:
    return set(recipe.weights) == set(expected) and all(torch.equal(recipe.weights[n], t) for n, t in expected.items())


@pytest.mark.parametrize(
    "prefix", [TOWER, "model.vision_tower.vision_tower.", "model.vision_tower.", "vision_tower.vision_model."]
)
def test_a_tower_within_the_checkpoint(copy: Path, expected: dict[str, Tensor], prefix: str) -> None:
    tower = tower_of(copy)
    edit_tensors(copy / "model.safetensors", lambda own: own.update({prefix + name: t for name, t in tower.items()}))
    shutil.rmtree(copy / "vision_tower")
    assert same(read(copy), expected)


def test_a_tower_spelled_rightly(copy: Path, expected: dict[str, Tensor]) -> None:
    """transformers' name of the first norm has a letter too few; not everyone keeps that."""
    file = copy / "vision_tower" / "model.safetensors"
    save_file({name.replace("layrnorm", "layernorm"): t for name, t in load_file(file).items()}, file)
    assert same(read(copy), expected)


def test_a_tower_from_elsewhere(copy: Path, expected: dict[str, Tensor], tmp_path: Path) -> None:
    """A whole CLIP, of which the half for texts is left out."""
    clip = tmp_path / "clip"
    shutil.move(copy / "vision_tower", clip)
    edit_tensors(
        clip / "model.safetensors",
        lambda own: own.update({"text_model.embeddings.x": torch.zeros(2), "logit_scale": torch.zeros(1)}),
    )
    assert "--vision-tower" in message(copy)
    assert same(read(copy, vision_tower=clip), expected)
    assert str(tmp_path / "none") in message(copy, vision_tower=tmp_path / "none")


def test_a_published_tower_is_only_fetched_where_it_is_needed(
    copy: Path, expected: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, clip = HubSource(repo="a/b", revision="main", files=("*",)), tmp_path / "clip"
    fetched: list[HubSource] = []

    def download(wanted: HubSource) -> Path:
        fetched.append(wanted)
        return clip

    monkeypatch.setattr("edgevlm_export.families.llava_mini.download", download)
    assert same(read(copy, vision_tower=source), expected) and fetched == []
    shutil.move(copy / "vision_tower", clip)
    assert same(read(copy, vision_tower=source), expected) and fetched == [source]


def test_shards(tmp_path: Path, expected: dict[str, Tensor]) -> None:
    write_shrunken(tmp_path, compressor_size=2, shard_bytes=1 << 17)
    shards = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(shards) > 3 and len(list((tmp_path / "vision_tower").glob("model-*"))) > 1
    assert same(read(tmp_path), expected)
    shards[1].unlink()
    assert f"{shards[1]}: named in model.safetensors.index.json but not there" in message(tmp_path)


def test_what_config_leaves_out_is_as_in_the_published_code(copy: Path) -> None:
    edit(copy / "config.json", lambda data: [data.pop(key) for key in ("compressor_size", "resolution_ratio")])
    parts = read(copy).parts
    assert parts.fusion is not None and parts.fusion.n_compressed == 4
    assert parts.image is not None and parts.image.split == 1


def test_one_token_needs_no_positions_of_keys(tmp_path: Path) -> None:
    write_shrunken(tmp_path, compressor_size=1)
    assert "compressor.key_positions" not in read(tmp_path).weights


def test_tied_embeddings(copy: Path) -> None:
    edit_tensors(copy / "model.safetensors", lambda own: own.pop("lm_head.weight"))
    weights = read(copy).weights
    assert torch.equal(weights["text.lm_head.weight"], weights["text.wte"])


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("model_type", "llava_llama", "model_type is 'llava_llama'"),
        ("compressor_size", 0, "compressor_size is 0"),
        ("compressor_size", 3, "model.compressor.pos_embed has shape (4, 128), expected (9, 128)"),
        ("prefusion_layer_num", 3, "missing (model.prefusion_layers.2.self_attn.q_proj.weight"),
        ("prefusion_layer_num", 1, "unknown (model.prefusion_layers.1."),
        ("mm_projector_type", "linear", "mm_projector_type is 'linear'; only 'mlp2x_gelu'"),
        ("image_aspect_ratio", "anyres", "image_aspect_ratio is 'anyres'"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}, "only that of llama3"),
        ("rope_scaling", {"rope_type": "llama3"}, "factor is None"),
        ("num_attention_heads", 5, "do not fit hidden_size 64"),
        ("head_dim", 32, "heads of 32"),
        ("mm_hidden_size", 1024, "mm_hidden_size is 1024, but the vision tower's features have 128"),
        ("mm_vision_select_layer", 1, "mm_vision_select_layer is 1"),
        ("vocab_size", 300, "model.embed_tokens.weight has shape (512, 64), expected (300, 64)"),
    ],
)
def test_config_that_does_not_fit_is_one_line(copy: Path, key: str, value: object, named: str) -> None:
    edit(copy / "config.json", lambda data: data.update({key: value}))
    assert named in message(copy)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("model.prefusion_layers.1.mlp.up_proj.weight", "model.prefusion_layers.1.mlp.up_proj.weight"),
        ("model.compressor.query", "model.compressor.query"),
        ("model.mm_projector.2.bias", "model.mm_projector.2.bias"),
        ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.k_proj.weight"),
    ],
)
def test_a_missing_tensor_is_named(copy: Path, name: str, named: str) -> None:
    edit_tensors(copy / "model.safetensors", lambda own: own.pop(name))
    assert f"1 missing ({named})" in message(copy)


def test_a_missing_tensor_of_the_tower_is_named(copy: Path) -> None:
    file = copy / "vision_tower" / "model.safetensors"
    edit_tensors(file, lambda own: own.pop("vision_model.encoder.layers.1.layer_norm2.weight"))
    assert "vision tower: tensors 1 missing (encoder.layers.1.layer_norm2.weight)" in message(copy)
    edit_tensors(file, lambda own: own.pop("vision_model.embeddings.patch_embedding.weight"))
    assert "embeddings.patch_embedding.weight is missing" in message(copy)


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("tokenizer.json", None, "tokenizer.json: no such file"),
        ("tokenizer.json", "{}", "tokenizer.json: can not be read as a tokenizer"),
        ("generation_config.json", "{}", "generation_config.json: no eos_token_id"),
        ("generation_config.json", '{"eos_token_id": [9999]}', "eos_token_id 9999 is no token"),
        ("vision_tower/preprocessor_config.json", '{"size": 99, "crop_size": 48}', "preprocessor_config.json"),
        ("vision_tower/config.json", '{"num_attention_heads": 3}', "3 heads do not divide 128"),
        ("tokenizer_config.json", '{"chat_template": "{% broken"}', "chat template can not be used"),
        (
            "tokenizer_config.json",
            '{"chat_template": "{{ raise_exception(\'no\') }}"}',
            "chat template can not be used (no)",
        ),
        ("tokenizer_config.json", '{"chat_template": "hello"}', "chat template leaves out what the user says"),
        (
            "tokenizer_config.json",
            '{"chat_template": "<|im_start|>{{ messages[1].content }}"}',
            "tokenizer.json: has no token <|im_start|>",
        ),
    ],
)
def test_files_that_are_missing_or_wrong_are_named(copy: Path, file: str, content: str | None, named: str) -> None:
    (copy / file).unlink() if content is None else (copy / file).write_text(content)
    found = message(copy)
    assert named in found
    assert str(copy) in found or "vision tower" in found


def test_a_template_cannot_do_more_than_write(copy: Path) -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (copy / "tokenizer_config.json").write_text(json.dumps({"chat_template": attack}))
    assert "chat template" in message(copy)


@pytest.mark.parametrize("as_list", [False, True])
def test_the_checkpoints_own_template_and_stops(copy: Path, as_list: bool) -> None:
    """A template that ends with the answer's header is not given a second one."""
    template = (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ m.content }}"
        "<|eot_id|>{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    )
    chosen: Any = [{"name": "default", "template": template}] if as_list else template
    (copy / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": chosen, "bos_token": {"content": "<|eom_id|>"}})
    )
    prompt, tokenizer = read(copy).parts.prompt, _tokenizer(copy)
    assert prompt is not None and prompt.before_image is not None
    marks = {
        name: tokenizer.token_to_id(f"<|{name}|>") for name in ("eom_id", "eot_id", "end_of_text", "begin_of_text")
    }
    assert prompt.before_image[:2] == (marks["begin_of_text"], marks["eom_id"])
    header = tuple(tokenizer.encode("<|start_header_id|>assistant<|end_header_id|>\n\n", add_special_tokens=False).ids)
    assert prompt.query.suffix == (marks["eot_id"], *header)
    assert (prompt.eos_id, prompt.stop_ids) == (marks["eot_id"], (marks["end_of_text"], marks["eom_id"]))


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("config", [FULL, TINY, replace(FULL, text=replace(FULL.text, rope_scaling=None))])
def test_rotary_angles_are_transformers(config: Any) -> None:
    """At every position that the decoder has, in full size."""
    text, scaling = config.text, config.text.rope_scaling
    theirs = LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=text.dim,
            num_attention_heads=text.n_heads,
            rope_theta=text.rope_theta,
            max_position_embeddings=131072,
            rope_scaling=None if scaling is None else {"rope_type": "llama3", **vars(scaling)},
        )
    )
    positions = torch.arange(text.max_context)[None]
    cos, sin = theirs(torch.zeros(1), positions)
    with torch.device("meta"):
        rotary = LlamaLayers(replace(text, n_layers=0)).rotary
    half = text.head_dim // 2
    torch.testing.assert_close(rotary.cos, cos[0, :, :half], atol=2e-3, rtol=0)
    torch.testing.assert_close(rotary.sin, sin[0, :, :half], atol=2e-3, rtol=0)
