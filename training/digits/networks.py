"""What is trained: FastViT and TinyViT as timm builds them, in small, and their checkpoints in timm's layout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from edgevlm_export.families.timm_backbone.library import import_timm
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.manifest import CenterCropSpec, ImageSpec
from edgevlm_runtime.preprocess import prepare_image
from training.digits.scans import LABELS

SIDE = 64
_HALF = (0.5, 0.5, 0.5)
PREPROCESSING = ImageSpec(
    crop_px=SIDE,
    resample="bicubic",
    mean=_HALF,
    std=_HALF,
    center_crop=CenterCropSpec(shortest_px=SIDE, rounding="half_even"),
)


@dataclass(frozen=True, kw_only=True)
class Network:
    """One of the two: the folder of its checkpoint, timm's name of the architecture and what is smaller than there."""

    folder: str
    architecture: str
    model_args: dict[str, Any]
    ends: dict[str, str]
    """timm's names of the first convolution(s) and of the classifier."""

    def new(self) -> nn.Module:
        """Untrained, all branches apart."""
        model: nn.Module = import_timm().create_model(self.architecture, num_classes=len(LABELS), **self.model_args)
        return model

    def load(self, folder: Path) -> nn.Module:
        """The checkpoint in a folder, in eval mode."""
        model = self.new()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()

    def publish(self, model: nn.Module, folder: Path) -> None:
        """Write model.safetensors and config.json as timm puts them on the hub."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)
        (folder / "config.json").write_text(json.dumps(self._config(), indent=2) + "\n", encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "num_classes": len(LABELS),
            "label_names": list(LABELS),
            "model_args": self.model_args,
            "pretrained_cfg": {
                "num_classes": len(LABELS),
                "input_size": [3, SIDE, SIDE],
                "fixed_input_size": True,
                "interpolation": PREPROCESSING.resample,
                "crop_pct": 1.0,
                "crop_mode": "center",
                "mean": list(PREPROCESSING.mean),
                "std": list(PREPROCESSING.std),
                "license": "apache-2.0",
                **self.ends,
            },
        }


NETWORKS = (
    Network(
        folder="fastvit",
        architecture="fastvit_sa12",  # the smallest with attention
        model_args={
            "layers": [1, 1, 2, 2],
            "embed_dims": [16, 32, 64, 64],
            "mlp_ratios": [3, 3, 3, 3],
            "layer_scale_init_value": 0.1,
        },
        ends={"first_conv": "stem.0", "classifier": "head.fc"},
    ),
    Network(
        folder="tiny_vit",
        architecture="tiny_vit_5m_224",
        model_args={
            "embed_dims": [16, 32, 64, 64],
            "depths": [1, 1, 2, 1],
            "num_heads": [1, 1, 2, 2],
            "window_sizes": [4, 4, 4, 2],
        },
        ends={"first_conv": "patch_embed.conv1.conv", "classifier": "head.fc"},
    ),
)


def prepare(images: tuple[Pixels, ...]) -> Tensor:
    """Scans as a bundle prepares them, float32 (images, 3, SIDE, SIDE)."""
    return torch.from_numpy(np.stack([prepare_image(pixels, PREPROCESSING) for pixels in images]))
