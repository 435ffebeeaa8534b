"""What all shrunken models have in common while they learn."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm_export.modules.layers import LayerNorm, Linear, RMSNorm
from training.batches import Packed
from training.cache import CROP
from training.dialogue import Exchange
from training.model import PATCH
from training.proofs.sequences import BundleLayouts

SIDE, PATCH_SIDE = CROP, PATCH
VOCAB = 576
CONTEXT = 512
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_DEEP = ("attn.proj.weight", "cross.proj.weight", "fc2.weight", "down.weight")


class Learner(nn.Module, ABC):
    """The export's own modules, with the parameters as they are published; `vision` is the image encoder."""

    vision: nn.Module
    vision_dim: int
    text_length: int
    """Tokens of exchanges about one image that are learned at once."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (n, side, side, 3) to all features of the image encoder."""

    @abstractmethod
    def patches(self, features: Tensor) -> Tensor:
        """Those of patches (n, patches, vision_dim), row by row."""

    @abstractmethod
    def hidden(self, features: Tensor, packed: Packed, before: Tensor) -> Tensor:
        """Hidden states (n, length, dim) of packed exchanges; `before` (tokens,) are the ids before the image."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(..., dim) to (..., vocab)."""

    @abstractmethod
    def prepare(self, folder: Path, said: Iterable[Exchange]) -> None:
        """Write all of a published checkpoint but tensors, with a tokenizer trained on what is said."""

    @abstractmethod
    def layouts(self, folder: Path) -> BundleLayouts:
        """How a prepared folder's exchanges are laid out."""

    @abstractmethod
    def publish(self, folder: Path) -> None:
        """Write the tensors in the published layout into a prepared folder."""

    def see(self, pixels: Tensor) -> Tensor:
        """Pixels to the features of patches."""
        return self.patches(self.encode(pixels))


def normalized(pixels: Tensor) -> Tensor:
    """uint8 (n, side, side, 3) to float32 (n, 3, side, side), as CLIP has them."""
    values = (pixels.float() / 255 - torch.tensor(_MEAN)) / torch.tensor(_STD)
    return values.permute(0, 3, 1, 2)


@torch.no_grad()
def start(module: nn.Module) -> None:
    """Fresh weights: norms change nothing, matrices keep magnitudes, those at the end of a branch begin small."""
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, LayerNorm | RMSNorm):
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            parameter.zero_()
        elif isinstance(owner, Linear) or name.endswith("in_weight"):
            parameter.normal_(std=(0.5 if name.endswith(_DEEP) else 1.0) / math.sqrt(parameter.shape[-1]))
        else:
            parameter.normal_(std=0.3)


def write_json(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
