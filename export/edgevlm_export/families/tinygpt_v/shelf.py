"""Tensors of one file, taken one after the other: what is left in the end was not understood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgevlm_export.checkpoint import LazyWeight
from edgevlm_runtime.errors import CheckpointError


class Shelf:
    """Tensors by key; `file` is where they come from, for messages."""

    def __init__(self, tensors: Mapping[str, LazyWeight], file: Path) -> None:
        self.left = dict(tensors)
        self.file = file

    def take(self, key: str) -> LazyWeight:
        """Take a tensor away.

        Raises:
            CheckpointError: it is not there.
        """
        if key not in self.left:
            raise CheckpointError(f"{self.file}: tensor {key} is missing; is it a checkpoint of another model?")
        return self.left.pop(key)

    def take_or(self, key: str, default: LazyWeight) -> LazyWeight:
        """Take a tensor away where there is one."""
        return self.left.pop(key, default)
