"""The graph role `decoder`, which every family that generates text has: one wrapper around its own text module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from edgevlm_export.families.family import GraphRequest
from edgevlm_export.modules.layers import Attend, Rotary
from edgevlm_runtime.manifest import TensorSpec


class LayerSizes(Protocol):
    """What layers over a cache are like; a head is dim // n_heads wide."""

    @property
    def dim(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def max_context(self) -> int: ...


class TextSizes(LayerSizes, Protocol):
    """What the decoder's graph must know of a text module's configuration."""

    @property
    def vocab_size(self) -> int: ...


class TextModule(Protocol):
    """A family's text module: blocks that are called with (batch, tokens, dim) and an `Attend`."""

    rotary: Rotary

    @property
    def config(self) -> TextSizes: ...
    @property
    def blocks(self) -> Iterable[nn.Module]: ...

    def hidden(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Embeddings (batch, tokens, dim) to hidden states before the last norm; mask as in `masked_attention`."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., dim) to next-token logits (..., vocab)."""
        ...


class _DecoderGraph(nn.Module):
    """The decoder over a cache that is read and extended in place; prefill and step are the same graph."""

    def __init__(self, text: TextModule) -> None:
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
        config = self.text.config
        presents: list[Tensor] = []
        x = embeddings
        for block, key, value in zip(self.text.blocks, past[::2], past[1::2], strict=True):
            shared = (attention_bias, seqlens_k, total_sequence_length, self.text.rotary.cos, self.text.rotary.sin)
            x = block(x, cached_attention(config, (key, value), shared, presents))
        hidden = x[0].index_select(0, logit_positions)
        return self.text.logits(hidden), hidden, *presents


class _WholeDecoder(nn.Module):
    """The decoder over a whole sequence without a cache, in plain torch; see `Recipe.decoder`."""

    def __init__(self, text: TextModule) -> None:
        super().__init__()
        self.text = text

    def forward(self, embeddings: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.text.hidden(embeddings, positions, mask)[0, rows]
        return self.text.logits(hidden), hidden


def whole_decoder(text_of: Callable[[nn.Module], TextModule]) -> Callable[[nn.Module], nn.Module]:
    """`Recipe.decoder` of a family whose module has the text module that `text_of` finds."""
    return lambda module: _WholeDecoder(text_of(module))


def cached_attention(
    config: LayerSizes, past: tuple[Tensor, Tensor], shared: tuple[Tensor, ...], presents: list[Tensor]
) -> Attend:
    """One layer's attention as GroupQueryAttention; its new keys and values are appended to presents.

    shared is the bias, seqlens_k, total_sequence_length, cosines and sines.
    """
    bias, seqlens_k, total, cos, sin = shared

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attended, *present = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (q, k, v, *past, seqlens_k, total, cos, sin, None, bias),
            attrs={
                "num_heads": config.n_heads,
                "kv_num_heads": config.n_kv_heads,
                "do_rotary": 1,
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


def decoder_request(
    config: TextSizes, text_of: Callable[[nn.Module], TextModule], *, eight_bits: frozenset[str] = frozenset()
) -> GraphRequest:
    """The role's request; `eight_bits` as in `GraphRequest`."""
    return GraphRequest(
        role="decoder",
        build=lambda module: _DecoderGraph(text_of(module)),
        inputs=(
            float_spec("embeddings", 1, "tokens", config.dim),
            float_spec("attention_bias", 1, 1, "tokens", "total"),
            TensorSpec(name="seqlens_k", dtype="int32", shape=(1,)),
            TensorSpec(name="total_sequence_length", dtype="int32", shape=()),
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


def cache_specs(name: str, config: LayerSizes) -> tuple[TensorSpec, ...]:
    """The keys and values of all layers, before or after a call."""
    shape = (1, config.n_kv_heads, config.max_context, config.dim // config.n_heads)
    return tuple(float_spec(f"{name}.{i}.{part}", *shape) for i in range(config.n_layers) for part in ("key", "value"))


def float_spec(name: str, *shape: int | str) -> TensorSpec:
    """A tensor in float32."""
    return TensorSpec(name=name, dtype="float32", shape=shape)
