"""The published model's tensors, by their names and shapes alone, fit; none of them is read."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from edgevlm.catalog import find_entry
from edgevlm_export.checkpoint import Checkpoint, LazyWeight
from edgevlm_export.families.tinygpt_v import build
from edgevlm_export.families.tinygpt_v.files import Files, Parts
from edgevlm_export.families.tinygpt_v.layouts import canonical
from edgevlm_export.families.tinygpt_v.sizes import read_sizes
from edgevlm_export.modules.tinygpt_v import TinyGptVConfig
from edgevlm_export.weights import match_weights, module_shapes

Shapes = dict[str, tuple[int, ...]]
PHI_CONFIG = {
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.4,
    "rope_theta": 10000.0,
}


def layer(key: str, n_outputs: int, *n_inputs: int) -> Shapes:
    return {f"{key}.weight": (n_outputs, *n_inputs), f"{key}.bias": (n_outputs,)}


def phi() -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (51200, 2560)}
    shapes |= {**layer("model.final_layernorm", 2560), **layer("lm_head", 51200, 2560)}
    for i in range(32):
        key = f"model.layers.{i}"
        shapes |= layer(f"{key}.input_layernorm", 2560)
        for name in ("q_proj", "k_proj", "v_proj", "dense"):
            shapes |= layer(f"{key}.self_attn.{name}", 2560, 2560)
        shapes |= {**layer(f"{key}.mlp.fc1", 10240, 2560), **layer(f"{key}.mlp.fc2", 2560, 10240)}
    return shapes


def eva() -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, 1408), "pos_embed": (1, 257, 1408)}
    shapes |= layer("patch_embed.proj", 1408, 3, 14, 14)
    for i in range(40):
        key = f"blocks.{i}"
        shapes |= {**layer(f"{key}.norm1", 1408), **layer(f"{key}.norm2", 1408)}
        shapes |= {f"{key}.attn.q_bias": (1408,), f"{key}.attn.v_bias": (1408,)}
        shapes |= {f"{key}.attn.qkv.weight": (4224, 1408), **layer(f"{key}.attn.proj", 1408, 1408)}
        shapes |= {**layer(f"{key}.mlp.fc1", 6144, 1408), **layer(f"{key}.mlp.fc2", 1408, 6144)}
    return shapes


def blip2() -> Shapes:
    bert = "Qformer.bert"
    shapes: Shapes = {"query_tokens": (1, 32, 768), f"{bert}.embeddings.position_ids": (1, 512)}
    shapes |= {**layer("ln_vision", 1408), **layer(f"{bert}.embeddings.LayerNorm", 768), **layer("t5_proj", 4096, 768)}
    for i in range(12):
        key = f"{bert}.encoder.layer.{i}"
        for attention, width in (("attention", 768), ("crossattention", 1408)):
            if attention == "crossattention" and i % 2:
                continue
            shapes |= layer(f"{key}.{attention}.self.query", 768, 768)
            shapes |= layer(f"{key}.{attention}.self.key", 768, width)
            shapes |= layer(f"{key}.{attention}.self.value", 768, width)
            shapes |= layer(f"{key}.{attention}.output.dense", 768, 768)
            shapes |= layer(f"{key}.{attention}.output.LayerNorm", 768)
        shapes |= layer(f"{key}.intermediate_query.dense", 3072, 768)
        shapes |= layer(f"{key}.output_query.dense", 768, 3072)
        shapes |= layer(f"{key}.output_query.LayerNorm", 768)
    return shapes


def stage() -> Shapes:
    wrapped = "llama_model.base_model.model.model"
    shapes: Shapes = {**layer("llama_proj", 4096, 768), **layer("llama_proj2", 2560, 4096)}
    shapes[f"{wrapped}.final_layernorm.weight"] = (2560,)
    for i in range(32):
        key = f"{wrapped}.layers.{i}"
        for name, rows in (("query_key_value", 7680), ("dense", 2560)):
            shapes[f"{key}.self_attn.{name}.lora_A.weight"] = (64, 2560)
            shapes[f"{key}.self_attn.{name}.lora_B.weight"] = (rows, 64)
        shapes |= {f"{key}.self_attn.{name}_layernorm.weight": (80,) for name in "qk"}
        shapes |= {f"{key}.{name}_layernorm.weight": (2560,) for name in ("input", "post")}
    return shapes


class Unread(Parts):
    """Tensors that can not be read."""

    def __init__(self, number: int) -> None:
        here = Path("published")
        self.files = Files(folder=here, phi=here, vision=here, qformer=here, trained=here, stage=number)
        self.phi, self.vision, self.qformer, self.trained = map(unread, (phi(), eva(), blip2(), stage()))


def unread(shapes: Shapes) -> Checkpoint:
    def read() -> Tensor:
        raise AssertionError("a tensor was read")

    tensors = {key: LazyWeight(origin=key, shape=shape, read=read) for key, shape in shapes.items()}
    return Checkpoint(Path("published"), tensors)


def test_every_published_tensor_has_its_place() -> None:
    parts = Unread(4)
    config = read_sizes(parts, PHI_CONFIG)
    assert config == TinyGptVConfig()
    weights = match_weights(module_shapes(build(config)), canonical(parts, config), "published")
    assert sum(math.prod(weights.shape(name)) for name in weights) == find_entry("tinygpt-v").parameters


def test_the_other_stages_look_at_224_pixels() -> None:
    assert [read_sizes(Unread(number), PHI_CONFIG).vision.image_px for number in (1, 2, 3, 4)] == [224, 224, 224, 448]
