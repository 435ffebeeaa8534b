"""Random checkpoints of the transformers package's classes: tiny ones for tests, full-size ones to measure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgevlm_export.optimum_trace import NOISY
from edgevlm_export.quiet import quiet
from edgevlm_export.torchvision_operators import declare_missing_operators


def write_random(
    out: Path, class_name: str, config: Mapping[str, Any], scalars: Mapping[str, float], *, seed: int = 0
) -> None:
    """config.json and model.safetensors of a class of transformers; `scalars` are parameters of a given value."""
    declare_missing_operators()
    import transformers
    from transformers.modeling_utils import no_init_weights

    model_class = getattr(transformers, class_name)
    with quiet(*NOISY), no_init_weights():
        model = model_class(model_class.config_class(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = torch.tensor(scalars[name]) if name in scalars else _random(name, parameter, model, generator)
            parameter.copy_(value)
    with quiet(*NOISY):
        model.save_pretrained(out)


def _random(name: str, parameter: Tensor, model: nn.Module, generator: torch.Generator) -> Tensor:
    """Matrices keep their input's magnitude, norms start as the identity, embeddings differ."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.LayerNorm) and name.endswith("weight"):
        return torch.ones_like(parameter)
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("bias"):
        return 0.02 * noise
    if isinstance(owner, nn.Embedding) or parameter.dim() in (1, 3):
        return 0.5 * noise
    return noise / math.sqrt(parameter[0].numel())
