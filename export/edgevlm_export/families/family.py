"""Step 2's contract: what a family makes of a checkpoint, and all that the later steps know about a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import onnx_ir as ir
from torch import nn

from edgevlm_export.checkpoint import Checkpoint, HubSource, open_checkpoint
from edgevlm_export.weights import Weights
from edgevlm_runtime.engines import Array
from edgevlm_runtime.manifest import (
    CacheSpec,
    FusionSpec,
    ImageSpec,
    MatchSpec,
    PromptSpec,
    RegionSpec,
    Role,
    SamplingSpec,
    Task,
    TensorSpec,
    TextSpec,
)


@dataclass(frozen=True, kw_only=True)
class GraphRequest:
    """One graph to trace: `build` wraps the family's module so that its forward takes and returns the specs in order.

    Parameters of the wrapper keep their names in the family's module. `example` gives each free axis a size.
    `high_precision` are parameters that stay in float32 whatever the bundle's precision. In an int4 bundle `eight_bits`
    have 8 bits although the graph has 4, and `four_bits`, which only the role vision may have, 4 although it has 8.
    """

    role: Role
    build: Callable[[nn.Module], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: dict[str, int]
    high_precision: frozenset[str] = frozenset()
    eight_bits: frozenset[str] = frozenset()
    four_bits: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ManifestParts:
    """The fields of the manifest that a family decides."""

    tasks: tuple[Task, ...]
    image: ImageSpec | None = None
    cache: CacheSpec | None = None
    fusion: FusionSpec | None = None
    prompt: PromptSpec | None = None
    region: RegionSpec | None = None
    sampling: SamplingSpec | None = None
    text: TextSpec | None = None
    match: MatchSpec | None = None
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the caller says about a checkpoint.

    `revision` is the published one where known; `variant` the model of the family, as the catalog names it;
    `tokenizer` replaces the file beside the checkpoint, `labels` the names of classes (a line each). `vision_tower` is
    a folder with the image encoder of a model that is published without, or where to get one from. Of models that
    were trained in stages, `stage` says which one to take; `prompts` names one of a family's formats to ask in.
    """

    revision: str | None = None
    variant: str | None = None
    tokenizer: Path | None = None
    labels: Path | None = None
    vision_tower: Path | HubSource | None = None
    stage: int | None = None
    prompts: str | None = None


PARTICULAR = ("vision_tower", "stage", "prompts")
"""The options that only some families understand."""


@dataclass(frozen=True, kw_only=True)
class ImageGraph:
    """One graph of a model that is small enough to be traced with its weights.

    The first axis of all inputs and outputs is free ("images" or "texts"). `trace` gives the graph in float32, inputs
    and outputs named and typed as the specs, with everything folded; with fixed=True the first axis is 1.
    `trace_published` gives it without folding, None where nothing was folded. `reference` is the published module in
    float32 torch: arrays by input name to arrays by output name.
    """

    role: Role
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    trace: Callable[[bool], ir.Model]
    reference: Callable[[Mapping[str, Array]], dict[str, Array]]
    trace_published: Callable[[], ir.Model] | None = None


@dataclass(frozen=True, kw_only=True)
class ImageRecipe:
    """A checkpoint of an image model, understood: a classifier, an image encoder, or one for images and one for texts.

    Roles, inputs -> outputs (all float32 but token_ids int64):
        classifier  images (images, 3, side, side) -> logits (images, classes), features (images, dim)
        vision      images (images, 3, side, side) -> embeddings (images, dim)
        text        token_ids (texts, tokens)      -> embeddings (texts, dim)
    Embeddings are as the model gives them, not yet of length 1. `labels` has a name for each class, where known.
    """

    family: str
    graphs: tuple[ImageGraph, ...]
    parts: ManifestParts
    labels: tuple[str, ...] | None = None
    tokenizer: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A checkpoint, understood. `build` makes the family's module on the meta device, without memory for weights.

    `embedding` is the parameter that becomes the bundle's embedding table, `tokenizer` the file that fits the model.
    `decoder` wraps the module for verification: its forward computes the whole of a sequence in plain torch, from
    embeddings (1, tokens, dim), positions (tokens,), a boolean mask (tokens, tokens), True where a token may look, and
    rows (n,) to logits (n, vocab) and hidden states before the last norm (n, dim) of these rows. `fuser` does so for
    the layers of `prefuse`: embeddings, positions and mask to embeddings (1, tokens, dim). `scales_cache` says that
    keys and values come from the matrix `qkv` of an `Attention` as they are, so that calibration sees what they reach.
    """

    family: str
    build: Callable[[], nn.Module]
    weights: Weights
    graphs: tuple[GraphRequest, ...]
    parts: ManifestParts
    embedding: str | None = None
    decoder: Callable[[nn.Module], nn.Module] | None = None
    fuser: Callable[[nn.Module], nn.Module] | None = None
    tokenizer: Path | None = None
    scales_cache: bool = True


class InOnePlace:
    """What families have in common whose checkpoint is one file, or one folder of tensors."""

    takes: frozenset[str] = frozenset()

    def open(self, path: Path, options: ReadOptions) -> Checkpoint:
        """See `Family.open`."""
        return open_checkpoint(path)


class Family(Protocol):
    """A model family, an entry of `FAMILIES`. `read` gives a Recipe where it `generates_text`, else an ImageRecipe.

    `takes` are those of PARTICULAR that it understands.
    """

    name: str
    generates_text: bool
    takes: frozenset[str]

    def open(self, path: Path, options: ReadOptions) -> Checkpoint:
        """Find the tensors of a checkpoint, for `read`.

        Raises:
            CheckpointError: nothing is there, a file is missing or damaged.
        """
        ...

    def read(self, checkpoint: Checkpoint, options: ReadOptions) -> Recipe | ImageRecipe:
        """Understand a checkpoint. Of a `Recipe` no tensor is read.

        Raises:
            CheckpointError: tensors, config.json, tokenizer.json or labels do not fit the family.
        """
        ...

    def shrink(self, out: Path) -> None:
        """Write a tiny random checkpoint of this family in its published layout, for tests."""
        ...
