"""config.json of LLaVA-Mini, and the shapes of its vision tower, to sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_export.modules.clip_vision import ACTIVATIONS, CHANNELS, ClipVisionConfig
from edgevlm_export.modules.llama import LlamaConfig, RopeScaling
from edgevlm_export.modules.llava_mini import LlavaMiniConfig, n_compressor_heads
from edgevlm_runtime.errors import CheckpointError

MODEL_TYPE = "llava_mini_llama"
# What the published code takes where config.json is silent.
_COMPRESSOR_SIZE, _PREFUSION_LAYERS, _RATIO = 2, 4, 1
_SELECTED_LAYER = -2
_HEAD_DIM = 64  # of all CLIP towers
_MAX_CONTEXT = 8192  # where config.json does not say how long texts were in training
# What this family was written for; others of LLaVA's variants compute something else.
_FIXED: Mapping[str, tuple[object, ...]] = {
    "mm_projector_type": ("mlp2x_gelu",),
    "mm_vision_select_feature": ("patch",),
    "mm_patch_merge_type": ("flat",),
    "image_aspect_ratio": ("square", None),
    "mm_use_im_start_end": (False,),
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
}


def read_sizes(data: Mapping[str, Any], tower: ClipVisionConfig) -> LlavaMiniConfig:
    """Sizes of a checkpoint with that tower.

    Raises:
        CheckpointError: config.json is of another model, lacks a size, or asks for what is not supported.
    """
    if data.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"config.json: model_type is {data.get('model_type')!r}, expected {MODEL_TYPE!r}")
    for key, known in _FIXED.items():
        if data.get(key, known[0]) not in known:
            raise CheckpointError(f"config.json: {key} is {data[key]!r}; only {known[0]!r} can be exported")
    config = LlavaMiniConfig(
        text=_read_text(data),
        vision=tower,
        compressor_size=_positive(data, "compressor_size", _COMPRESSOR_SIZE),
        n_prefusion_layers=_positive(data, "prefusion_layer_num", _PREFUSION_LAYERS),
        resolution_ratio=_positive(data, "resolution_ratio", _RATIO),
    )
    if (width := data.get("mm_hidden_size", tower.dim)) != tower.dim:
        raise CheckpointError(
            f"config.json: mm_hidden_size is {width}, but the vision tower's features have {tower.dim}"
        )
    return config


def selected_layer(data: Mapping[str, Any]) -> int:
    """Which of the tower's hidden states are its features, counted from the last.

    Raises:
        CheckpointError: it is none of them.
    """
    layer = data.get("mm_vision_select_layer", _SELECTED_LAYER)
    if type(layer) is not int or layer >= 0:
        raise CheckpointError(f"config.json: mm_vision_select_layer is {layer!r}, expected a negative number")
    return layer


def tower_sizes(tensors: Mapping[str, LazyWeight], data: Mapping[str, Any], layer: int) -> ClipVisionConfig:
    """Sizes of a tower by its tensors, whose names start with `embeddings.` and so on.

    `data` is its config.json, {} where there is none; `layer` as of `selected_layer`.

    Raises:
        CheckpointError: a tensor is missing or misshapen, or config.json asks for what is not supported.
    """
    patches = _tensor(tensors, "embeddings.patch_embedding.weight", 4)
    positions = _tensor(tensors, "embeddings.position_embedding.weight", 2)
    inner = _tensor(tensors, "encoder.layers.0.mlp.fc1.weight", 2)
    dim, patch_px = patches[0], patches[2]
    n_layers = len({name.split(".")[2] for name in tensors if name.startswith("encoder.layers.")})
    grid = int((positions[0] - 1) ** 0.5)
    told = data.get("vision_config", data)
    n_heads = told.get("num_attention_heads", max(1, dim // _HEAD_DIM))
    activation = told.get("hidden_act", "quick_gelu")
    rules = (
        (patches == (dim, CHANNELS, patch_px, patch_px), "patches are not square ones in color"),
        (positions == (1 + grid**2, dim), "positions are not those of a square and a class token"),
        (type(n_heads) is int and n_heads > 0 and dim % n_heads == 0, f"{n_heads!r} heads do not divide {dim}"),
        (dim % n_compressor_heads(dim) == 0, f"{dim} features do not fit the compressor's heads"),
        (activation in ACTIVATIONS, f"activation {activation!r} is not supported"),
        (n_layers + 1 + layer > 0, f"has {n_layers} layers, too few for mm_vision_select_layer {layer}"),
        (told.get("layer_norm_eps", 1e-5) == 1e-5, "layer_norm_eps is not 1e-5"),
    )
    for holds, problem in rules:
        if not holds:
            raise CheckpointError(f"vision tower: {problem}")
    return ClipVisionConfig(
        dim=dim,
        ff_dim=inner[0],
        n_layers=n_layers + 1 + layer,
        n_heads=n_heads,
        patch_px=patch_px,
        image_px=grid * patch_px,
        activation=activation,
    )


def _tensor(tensors: Mapping[str, LazyWeight], name: str, n_axes: int) -> tuple[int, ...]:
    if name not in tensors or len(tensors[name].shape) != n_axes:
        raise CheckpointError(f"vision tower: tensor {name} is missing or misshapen; is it one of CLIP's?")
    return tensors[name].shape


def _read_text(data: Mapping[str, Any]) -> LlamaConfig:
    dim, n_heads = _positive(data, "hidden_size"), _positive(data, "num_attention_heads")
    n_kv_heads = _positive(data, "num_key_value_heads", n_heads)
    if dim % n_heads or n_heads % n_kv_heads or data.get("head_dim") not in (None, dim // n_heads):
        raise CheckpointError(
            f"config.json: heads of {data.get('head_dim')}, {n_heads} and {n_kv_heads} of them, do not fit "
            f"hidden_size {dim}"
        )
    longest = _positive(data, "max_position_embeddings")
    trained = data.get("tokenizer_model_max_length") or min(longest, _MAX_CONTEXT)
    return LlamaConfig(
        dim=dim,
        ff_dim=_positive(data, "intermediate_size"),
        n_layers=_positive(data, "num_hidden_layers"),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        vocab_size=_positive(data, "vocab_size"),
        max_context=_positive({"tokenizer_model_max_length": trained}, "tokenizer_model_max_length"),
        rope_theta=_number(data, "rope_theta", 10000.0),
        rope_scaling=_read_scaling(data.get("rope_scaling")),
        norm_eps=_number(data, "rms_norm_eps", 1e-6),
    )


def _read_scaling(data: Any) -> RopeScaling | None:
    """What config.json says of how positions are stretched.

    Raises:
        CheckpointError: in another way than Llama 3.1's.
    """
    kind = "default" if data is None else data.get("rope_type", data.get("type")) if isinstance(data, dict) else data
    if kind == "default":
        return None
    if kind != "llama3":
        raise CheckpointError(f"config.json: rope_scaling is {data!r}; only that of llama3 can be exported")
    return RopeScaling(
        factor=_number(data, "factor"),
        low_freq_factor=_number(data, "low_freq_factor"),
        high_freq_factor=_number(data, "high_freq_factor"),
        original_max_position_embeddings=_positive(data, "original_max_position_embeddings"),
    )


def _positive(data: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise CheckpointError(f"config.json: {key} is {value!r}, expected a positive integer")
    return value


def _number(data: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = data.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise CheckpointError(f"config.json: {key} is {value!r}, expected a positive number")
    return float(value)
