"""Writing a checkpoint in the layout in which Moondream 2 is published."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from edgevlm_export.modules.moondream2 import Moondream2
from training.tokenizer import TOKENIZER_CONFIG


def publish(model: Moondream2, tokenizer: Tokenizer, folder: Path) -> None:
    """Write model.safetensors in float16, config.json and tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{name}": tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    unfinished = folder / "model.safetensors.tmp"
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.rename(folder / "model.safetensors")
    config = {"model_type": "moondream1", "config": {**asdict(model.config), "tokenizer": TOKENIZER_CONFIG}}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))
