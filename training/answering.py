"""Second phase's model: image and packed exchanges to losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from edgevlm_export.modules.moondream2 import Moondream2
from training.batches import IGNORED, Packed
from training.model import N_PREFIX

_COORD_SPREAD = 1.0
_SIZE_SPREAD = 2.0
_SIZE_OCTAVES = 10.0


def prefix(model: Moondream2, features: Tensor) -> Tensor:
    """Features (images, patches, dim) of single-tile images to [bos, image tokens] (images, 1 + patches, dim)."""
    tokens = model.vision.project(torch.cat((features, features), dim=-1))
    bos = model.text.embed(torch.zeros(len(features), 1, dtype=torch.long))
    return torch.cat((bos.to(tokens.dtype), tokens), dim=1)


def embedded(model: Moondream2, packed: Packed) -> Tensor:
    """(images, length, dim): embeddings of tokens, coordinates and sizes."""
    embeddings = model.text.embed(packed.ids.clamp(min=0))
    given = packed.values.isnan().logical_not()
    is_size, is_coordinate = given[..., 1], given[..., 0] & ~given[..., 1]
    coordinates = model.region.encode_coordinate(packed.values[is_coordinate][:, :1])
    sizes = model.region.encode_size(packed.values[is_size])
    embeddings = embeddings.clone()
    embeddings[is_coordinate] = coordinates.to(embeddings.dtype)
    embeddings[is_size] = sizes.to(embeddings.dtype)
    return embeddings


def hidden_states(model: Moondream2, features: Tensor, packed: Packed) -> Tensor:
    """(images, length, dim) hidden states of the packed positions."""
    embeddings = torch.cat((prefix(model, features), embedded(model, packed)), dim=1)
    return model.text.hidden(embeddings, packed.all_positions(), packed.mask())[:, N_PREFIX:]


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Cross-entropies of tokens, coordinates and sizes."""

    tokens: Tensor
    coordinates: Tensor
    sizes: Tensor

    @property
    def total(self) -> Tensor:
        return self.tokens + 0.3 * (self.coordinates + self.sizes)


def losses(model: Moondream2, features: Tensor, packed: Packed) -> Losses:
    """Losses of what the exchanges should say."""
    hidden = hidden_states(model, features, packed)
    asked = packed.tokens != IGNORED
    given = packed.regions.isnan().logical_not()
    is_size, is_coordinate = given[..., 1], given[..., 0] & ~given[..., 1]
    coordinate_logits = model.region.decode_coordinate(hidden[is_coordinate]).float()
    size_logits = model.region.decode_size(hidden[is_size]).float()
    return Losses(
        tokens=token_loss(model.text.logits(hidden[asked]), packed),
        coordinates=soft_cross_entropy(
            coordinate_logits, packed.regions[is_coordinate][:, 0] * coordinate_logits.shape[-1], _COORD_SPREAD
        ),
        sizes=soft_cross_entropy(size_logits, size_bins(packed.regions[is_size], size_logits.shape[-1]), _SIZE_SPREAD),
    )


def token_loss(logits: Tensor, packed: Packed) -> Tensor:
    """Weighted cross-entropy of logits (n, vocab) at all positions where something should be said."""
    asked = packed.tokens != IGNORED
    each = functional.cross_entropy(logits.float(), packed.tokens[asked], reduction="none")
    weights = packed.weights[asked]
    return (each * weights).sum() / weights.sum()


def size_bins(sizes: Tensor, n_bins: int) -> Tensor:
    """Fractions to (unrounded) bins on the logarithmic scale of sizes."""
    return (sizes.log2() / _SIZE_OCTAVES + 1) * (n_bins - 1)


def soft_cross_entropy(logits: Tensor, bins: Tensor, spread: float) -> Tensor:
    """Mean cross-entropy of logits (..., n_bins) with Gaussians around bins (...); zero when there are none."""
    if logits.numel() == 0:
        return logits.sum()
    distance = torch.arange(logits.shape[-1]) - bins[..., None]
    target = torch.softmax(-0.5 * (distance / spread) ** 2, dim=-1)
    return -(target * torch.log_softmax(logits, dim=-1)).sum(-1).mean()
