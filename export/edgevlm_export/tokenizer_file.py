"""A tokenizer.json beside a checkpoint, or the one given in its place."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from edgevlm_runtime.errors import CheckpointError


def open_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json.

    Raises:
        CheckpointError: it is not there or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give the model's tokenizer.json with --tokenizer FILE")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path}: can not be read as a tokenizer ({str(error)[:200]})") from error
