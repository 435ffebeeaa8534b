"""The graph role `decoder`, which every family that generates text has: one wrapper around its own text module,
and what other graphs over a cache have in common with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from edgevlm_export.families.family import GraphRequest
from edgevlm_export.modules.decoder import Decoder, Layers, LayerSizes, TextSizes
from edgevlm_export.modules.layers import Attend, Rotary, merge_heads, split_heads
from edgevlm_runtime.manifest import TensorSpec

_ROTATED_STEP = 16  # heads of other sizes ONNX Runtime does not rotate itself


class _DecoderGraph(nn.Module):
    """The decoder over a cache that is read and extended in place; prefill and step are the same graph."""

    def __init__(self, text: Decoder) -> None:
        super().__init__()
        self.text = text

    def forward(
        self,
        embeddings: Tensor,
        attention_bias: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        logit_positions: Tensor,
        *past: Tensor,
    ) -> tuple[Tensor, ...]:
        lengths = (seqlens_k, total_sequence_length)
        x, presents = cached_layers(self.text, embeddings, attention_bias, lengths, past)
        hidden = x[0].index_select(0, logit_positions)
        return self.text.logits(hidden), hidden, *presents


class _WholeDecoder(nn.Module):
    """The decoder over a whole sequence without a cache, in plain torch; see `Recipe.decoder`."""

    def __init__(self, text: Decoder) -> None:
        super().__init__()
        self.text = text

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.text.hidden(embeddings, positions, mask)[0, rows]
        return self.text.logits(hidden), hidden


def whole_decoder(text_of: Callable[[nn.Module], Decoder]) -> Callable[[nn.Module], nn.Module]:
    """`Recipe.decoder` of a family whose module has the text module that `text_of` finds."""
    return lambda module: _WholeDecoder(text_of(module))


def cached_layers(
    layers: Layers, x: Tensor, bias: Tensor, lengths: tuple[Tensor, Tensor], past: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor]]:
    """Embeddings x to hidden states, and the new keys and values of all layers in the order of `past`.

    lengths are seqlens_k and total_sequence_length; the arguments are shaped as in `layers_inputs` and `cache_specs`.
    """
    config, rotary = layers.config, layers.rotary
    rotates = config.dim // config.n_heads % _ROTATED_STEP == 0
    shared = (bias, *lengths, *((rotary.cos, rotary.sin) if rotates else (None, None)))
    presents: list[Tensor] = []
    for block, key, value in zip(layers.blocks, past[::2], past[1::2], strict=True):
        attend = _cached_attention(config, (key, value), shared, presents)
        x = block(x, attend if rotates else _rotated(attend, config, rotary, lengths[1]))
    return x, presents


def _cached_attention(
    config: LayerSizes, past: tuple[Tensor, Tensor], shared: tuple[Tensor | None, ...], presents: list[Tensor]
) -> Attend:
    """One layer's attention as GroupQueryAttention; its new keys and values are appended to presents.

    shared is the bias, seqlens_k, total_sequence_length, and cosines and sines if it is to rotate.
    """
    bias, seqlens_k, total, cos, sin = shared

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (q, k, v, *past, seqlens_k, total, cos, sin, None, bias),
            attrs={
                "num_heads": config.n_heads,
                "kv_num_heads": config.n_kv_heads,
                "do_rotary": int(cos is not None),
                "rotary_interleaved": 0,
                "causal": 0,
            },
            dtypes=(q.dtype, k.dtype, v.dtype),
            shapes=(q.shape, past[0].shape, past[1].shape),
            version=1,
        )
        presents.extend(present)
        result: Tensor = attended
        return result

    return attend


def _rotated(attend: Attend, config: LayerSizes, rotary: Rotary, total: Tensor) -> Attend:
    """Attention to queries and keys that are rotated before it; they end where the sequence of `total` tokens does."""

    def attend_rotated(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        positions = torch.arange(q.shape[1]) + (total - q.shape[1])
        query, key = (
            merge_heads(rotary(split_heads(x, n_heads), positions))
            for x, n_heads in ((q, config.n_heads), (k, config.n_kv_heads))
        )
        return attend(query, key, v)

    return attend_rotated


def decoder_request(
    config: TextSizes, text_of: Callable[[nn.Module], Decoder], *, eight_bits: frozenset[str] = frozenset()
) -> GraphRequest:
    """The role's request; `eight_bits` as in `GraphRequest`."""
    return GraphRequest(
        role="decoder",
        build=lambda module: _DecoderGraph(text_of(module)),
        inputs=(
            *layers_inputs(config),
            TensorSpec(name="logit_positions", dtype="int64", shape=("n",)),
            *cache_specs("past_key_values", config),
        ),
        outputs=(
            float_spec("logits", "n", config.vocab_size),
            float_spec("hidden", "n", config.dim),
            *cache_specs("present", config),
        ),
        example={"tokens": 3, "total": 5, "n": 2},
        eight_bits=eight_bits,
    )


def layers_inputs(config: LayerSizes) -> tuple[TensorSpec, ...]:
    """What layers over a cache read besides the cache."""
    return (
        float_spec("embeddings", 1, "tokens", config.dim),
        float_spec("attention_bias", 1, 1, "tokens", "total"),
        TensorSpec(name="seqlens_k", dtype="int32", shape=(1,)),
        TensorSpec(name="total_sequence_length", dtype="int32", shape=()),
    )


def cache_specs(name: str, config: LayerSizes) -> tuple[TensorSpec, ...]:
    """The keys and values of all layers, before or after a call."""
    shape = (1, config.n_kv_heads, config.max_context, config.dim // config.n_heads)
    return tuple(float_spec(f"{name}.{i}.{part}", *shape) for i in range(config.n_layers) for part in ("key", "value"))


def float_spec(name: str, *shape: int | str) -> TensorSpec:
    """A tensor in float32."""
    return TensorSpec(name=name, dtype="float32", shape=shape)
