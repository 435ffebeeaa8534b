"""Step 2's contract: what a family makes of a checkpoint, and all that the later steps know about a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from edgevlm_export.checkpoint import Checkpoint
from edgevlm_export.weights import Weights
from edgevlm_runtime.manifest import CacheSpec, ImageSpec, PromptSpec, RegionSpec, Role, SamplingSpec, Task, TensorSpec


@dataclass(frozen=True, kw_only=True)
class GraphRequest:
    """One graph to trace: `build` wraps the family's module so that its forward takes and returns the specs in order.

    Parameters of the wrapper keep their names in the family's module. `example` gives each free axis a size.
    `high_precision` are parameters that stay in float32 whatever the bundle's precision.
    """

    role: Role
    build: Callable[[nn.Module], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: dict[str, int]
    high_precision: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ManifestParts:
    """The fields of the manifest that a family decides."""

    tasks: tuple[Task, ...]
    image: ImageSpec | None = None
    cache: CacheSpec | None = None
    prompt: PromptSpec | None = None
    region: RegionSpec | None = None
    sampling: SamplingSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checkpoint, understood. `build` makes the family's module on the meta device, without memory for weights.

    `embedding` is the parameter that becomes the bundle's embedding table, `tokenizer` the file that fits the model.
    `decoder` wraps the module for verification: its forward computes the whole of a sequence in plain torch, from
    embeddings (1, tokens, dim), positions (tokens,), a boolean mask (tokens, tokens), True where a token may look, and
    rows (n,) to logits (n, vocab) and hidden states before the last norm (n, dim) of these rows.
    """

    family: str
    build: Callable[[], nn.Module]
    weights: Weights
    graphs: tuple[GraphRequest, ...]
    parts: ManifestParts
    embedding: str | None = None
    decoder: Callable[[nn.Module], nn.Module] | None = None
    tokenizer: Path | None = None


class Family(Protocol):
    """One model family, an entry of `FAMILIES`."""

    name: str

    def read(self, checkpoint: Checkpoint, *, revision: str | None, tokenizer: Path | None) -> Recipe:
        """Understand a checkpoint; no tensor is read.

        revision is the published one where known; tokenizer replaces the file beside the checkpoint.

        Raises:
            CheckpointError: tensors, config.json or tokenizer.json do not fit the family.
        """
        ...

    def shrink(self, out: Path) -> None:
        """Write a tiny random checkpoint of this family in its published layout, for tests."""
        ...
