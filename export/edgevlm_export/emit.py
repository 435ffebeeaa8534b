"""Step 6: graphs with their weights, the embedding table, the tokenizer and the manifest into a folder.

Weights are made and written one at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib import metadata
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgevlm_export.families.family import GraphRequest, Recipe
from edgevlm_export.quantize import read_slices
from edgevlm_runtime.manifest import GraphSpec, Precision, Provenance

EMBEDDING = "embedding.npy"
TOKENIZER = "tokenizer.json"
_PAGE_BYTES = 4096  # what an engine maps into memory starts at a page
_SMALL_BYTES = 256  # stays within the graph file
_TOOLS = ("edgevlm", "torch", "onnx-ir", "onnxscript", "onnxruntime")
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


def emit_graph(
    model: ir.Model, request: GraphRequest, folder: Path, precision: Precision, written: Callable[[], None]
) -> GraphSpec:
    """Write one graph with its weights beside it; `written` is called after each tensor.

    Raises:
        OSError: the disk is full or can not be written.
        CheckpointError: a tensor has values that are not finite.
    """
    file = f"{request.role}.onnx"
    ir.save(
        model,
        folder / file,
        external_data=f"{file}.data",
        size_threshold_bytes=_SMALL_BYTES,
        alignment=_PAGE_BYTES,
        align_threshold=_PAGE_BYTES,
        callback=lambda tensor, info: written(),
    )
    return GraphSpec(file=file, precision=precision, inputs=request.inputs, outputs=request.outputs)


def emit_embedding(recipe: Recipe, folder: Path, precision: Precision) -> str | None:
    """Write the embedding table (vocab, dim), float32 in fp32 bundles and float16 in others; its file's name."""
    if recipe.embedding is None:
        return None
    dtype, stored = (np.float32, torch.float32) if precision == "fp32" else (np.float16, torch.float16)
    shape = recipe.weights.shape(recipe.embedding)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with (folder / EMBEDDING).open("wb") as opened:
        np.lib.format.write_array_header_1_0(opened, header)
        for rows in read_slices(recipe.weights, recipe.embedding, stored):
            opened.write(rows.data)
    return EMBEDDING


def emit_tokenizer(recipe: Recipe, folder: Path) -> str | None:
    """Copy the tokenizer; its file's name."""
    if recipe.tokenizer is None:
        return None
    shutil.copyfile(recipe.tokenizer, folder / TOKENIZER)
    return TOKENIZER


def emit_license(source: Path, folder: Path) -> None:
    """Copy the license that lies beside the checkpoint, if one does."""
    for name in _LICENSES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / "LICENSE")
            return


def planned_bytes(models: Iterable[ir.Model], recipe: Recipe, precision: Precision) -> int:
    """What the graphs and the embedding table will take on disk."""
    tensors = sum(
        value.const_value.nbytes + _PAGE_BYTES
        for model in models
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    table = prod(recipe.weights.shape(recipe.embedding)) if recipe.embedding is not None else 0
    return tensors + table * (4 if precision == "fp32" else 2)


def provenance(*, source: str, revision: str, license: str) -> Provenance:
    """Where the bundle comes from, made now with the tools at hand."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    tools = {name: _version(name) for name in _TOOLS}
    return Provenance(source=source, revision=revision, license=license, date=now, tools=tools)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "from source"
