"""TinyGPT-V as torch modules: EVA's image encoder, the Q-Former and a modified Phi-2.

Vision: patches and a class token, no norm behind the last block but the one that the Q-Former was trained with.
Q-Former: a few learned queries that look at each other and, in every second layer, at the image. Text: Phi-2's
parallel blocks with two more norms, of queries and keys before they are rotated and of what attention adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from edgevlm_export.modules.decoder import ParallelDecoder
from edgevlm_export.modules.layers import (
    Attend,
    Attention,
    LayerNorm,
    Linear,
    Mlp,
    PreNormBlock,
    RMSNorm,
    Rotary,
    full_attention,
    patchify,
    run_blocks,
)

CHANNELS = 3


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The image encoder; the defaults are EVA ViT-g's at 448 pixels."""

    dim: int = 1408
    ff_dim: int = 6144
    n_layers: int = 39
    n_heads: int = 16
    patch_px: int = 14
    grid: int = 32

    @property
    def image_px(self) -> int:
        """Pixels along one side of an image."""
        return self.grid * self.patch_px

    @property
    def n_tokens(self) -> int:
        """The class token and the patches."""
        return 1 + self.grid**2


@dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """The Q-Former; layers 0, `cross_every`, 2 * `cross_every`, ... look at the image."""

    dim: int = 768
    ff_dim: int = 3072
    n_layers: int = 12
    n_heads: int = 12
    n_queries: int = 32
    cross_every: int = 2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The decoder; `rotary_dim` dimensions of each head turn with the position."""

    dim: int = 2560
    ff_dim: int = 10240
    n_layers: int = 32
    n_heads: int = 32
    rotary_dim: int = 32
    vocab_size: int = 51200
    max_context: int = 2048
    rope_theta: float = 10000.0

    @property
    def n_kv_heads(self) -> int:
        """Every head has keys and values of its own."""
        return self.n_heads

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


@dataclass(frozen=True, kw_only=True)
class TinyGptVConfig:
    """All sizes of one checkpoint; the defaults are the published model's of stage 4."""

    vision: VisionConfig = VisionConfig()
    qformer: QFormerConfig = QFormerConfig()
    text: TextConfig = TextConfig()


class VisionBlock(PreNormBlock):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__(
            partial(LayerNorm, config.dim, eps=1e-6),
            Attention(config.dim, config.n_heads, config.n_heads),
            Mlp(config.dim, config.ff_dim, exact=True),
        )


class Vision(nn.Module):
    """Images to the features that the Q-Former looks at."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_emb = Linear(CHANNELS * config.patch_px**2, config.dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.pos_emb = nn.Parameter(torch.empty(1, config.n_tokens, config.dim))
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.n_layers))
        self.post_ln = LayerNorm(config.dim)

    def encode(self, images: Tensor) -> Tensor:
        """Normalized images (images, 3, side, side) to features (images, 1 + patches, dim), the class token first."""
        patches = self.patch_emb(patchify(images, self.config.patch_px))
        x = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_emb
        y: Tensor = self.post_ln(run_blocks(self.blocks, x, full_attention(self.config.n_heads)))
        return y


class CrossAttention(nn.Module):
    """Queries from one sequence, keys and values from another."""

    def __init__(self, dim: int, other_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.q = Linear(dim, dim)
        self.kv = Linear(other_dim, 2 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, other: Tensor, attend: Attend) -> Tensor:
        y: Tensor = self.proj(attend(self.q(x), *self.kv(other).split(self.dim, dim=-1)))
        return y


class QFormerLayer(nn.Module):
    """Each of its parts adds to the queries and norms the sum. Without `looks` it has no cross-attention."""

    def __init__(self, config: QFormerConfig, image_dim: int, *, looks: bool) -> None:
        super().__init__()
        self.attn = Attention(config.dim, config.n_heads, config.n_heads)
        self.attn_ln = LayerNorm(config.dim, eps=1e-12)
        self.cross = CrossAttention(config.dim, image_dim) if looks else None
        self.cross_ln = LayerNorm(config.dim, eps=1e-12) if looks else None
        self.mlp = Mlp(config.dim, config.ff_dim, exact=True)
        self.mlp_ln = LayerNorm(config.dim, eps=1e-12)

    def forward(self, x: Tensor, features: Tensor, attend: Attend) -> Tensor:
        x = self.attn_ln(x + self.attn(x, attend))
        if self.cross is not None and self.cross_ln is not None:
            x = self.cross_ln(x + self.cross(x, features, attend))
        y: Tensor = self.mlp_ln(x + self.mlp(x))
        return y


class QFormer(nn.Module):
    """Features of an image to a fixed number of the decoder's tokens."""

    def __init__(self, config: QFormerConfig, image_dim: int, out_dim: int) -> None:
        super().__init__()
        self.config = config
        self.queries = nn.Parameter(torch.empty(1, config.n_queries, config.dim))
        self.query_ln = LayerNorm(config.dim, eps=1e-12)
        self.layers = nn.ModuleList(
            QFormerLayer(config, image_dim, looks=index % config.cross_every == 0) for index in range(config.n_layers)
        )
        self.project = Linear(config.dim, out_dim)

    def forward(self, features: Tensor) -> Tensor:
        """(images, 1 + patches, image_dim) to (images, queries, out_dim)."""
        x = self.query_ln(self.queries).expand(features.shape[0], -1, -1)
        attend = full_attention(self.config.n_heads)
        for layer in self.layers:
            x = layer(x, features, attend)
        y: Tensor = self.project(x)
        return y


class TextAttention(nn.Module):
    """Attention whose queries and keys are normed head by head, and whose result is normed as a whole."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.q_ln = LayerNorm(config.head_dim)
        self.k_ln = LayerNorm(config.head_dim)
        self.proj = Linear(config.dim, config.dim)
        self.post_ln = RMSNorm(config.dim)

    def forward(self, x: Tensor, attend: Attend) -> Tensor:
        q, k, v = self.qkv(x).split(self.config.dim, dim=-1)
        y: Tensor = self.post_ln(self.proj(attend(self._norm(q, self.q_ln), self._norm(k, self.k_ln), v)))
        return y

    def _norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """(batch, tokens, heads * head_dim), each head by itself."""
        heads = x.reshape(x.shape[0], -1, self.config.n_heads, self.config.head_dim)
        y: Tensor = norm(heads)
        return y.reshape(x.shape[0], -1, self.config.dim)


class Text(ParallelDecoder):
    """The decoder over embeddings."""

    def __init__(self, config: TextConfig) -> None:
        rotary = Rotary(config.rotary_dim, config.max_context, config.rope_theta)
        super().__init__(config, partial(TextAttention, config), rotary)


class TinyGptV(nn.Module):
    """The three parts."""

    def __init__(self, config: TinyGptVConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = Vision(config.vision)
        self.qformer = QFormer(config.qformer, config.vision.dim, config.text.dim)
        self.text = Text(config.text)
