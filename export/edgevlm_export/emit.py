"""Step 6: graphs with their weights, the embedding table, the tokenizer and the manifest into a folder.

Weights are made and written one at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from math import prod
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from edgevlm_export.families.family import Recipe
from edgevlm_export.quantize import read_slices
from edgevlm_export.weights import Weights
from edgevlm_runtime.embedding import int8_rows, pack_rows
from edgevlm_runtime.manifest import Precision, Provenance, Role

EMBEDDING = "embedding.npy"
TOKENIZER = "tokenizer.json"
LABELS = "labels.txt"
_PAGE_BYTES = 4096  # what an engine maps into memory starts at a page
_SMALL_BYTES = 256  # stays within the graph file
_TABLE_BYTES: Mapping[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 2, "int4": 1}
_TOOLS = ("edgevlm", "torch", "onnx-ir", "onnxscript", "onnxruntime")
_LICENSES = ("LICENSE", "LICENSE.txt", "LICENSE.md")


def emit_graph(model: ir.Model, role: Role, folder: Path, written: Callable[[], None] = lambda: None) -> str:
    """Write one graph with its weights beside it; its file's name. `written` is called after each tensor.

    Raises:
        OSError: the disk is full or can not be written.
        CheckpointError: a tensor has values that are not finite.
    """
    file = f"{role}.onnx"
    ir.save(
        model,
        folder / file,
        external_data=f"{file}.data",
        size_threshold_bytes=_SMALL_BYTES,
        alignment=_PAGE_BYTES,
        align_threshold=_PAGE_BYTES,
        callback=lambda tensor, info: written(),
    )
    return file


def emit_embedding(recipe: Recipe, folder: Path, precision: Precision) -> str | None:
    """Write the embedding table (vocab, dim), float32 in fp32 bundles and float16 in others; its file's name.

    In int4 bundles it is in 8 bits, a scale and int8 values each row.
    """
    if recipe.embedding is None:
        return None
    if precision == "int4":
        return _emit_small_embedding(recipe.weights, recipe.embedding, folder)
    dtype, stored = (np.float32, torch.float32) if precision == "fp32" else (np.float16, torch.float16)
    shape = recipe.weights.shape(recipe.embedding)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with (folder / EMBEDDING).open("wb") as opened:
        np.lib.format.write_array_header_1_0(opened, header)
        for rows in read_slices(recipe.weights, recipe.embedding, stored):
            opened.write(rows.data)
    return EMBEDDING


def _emit_small_embedding(weights: Weights, name: str, folder: Path) -> str:
    vocab, dim = weights.shape(name)
    table = np.lib.format.open_memmap(folder / EMBEDDING, "w+", int8_rows(dim), (vocab,))
    start = 0
    for rows in read_slices(weights, name, torch.float32):
        table[start : start + len(rows)] = pack_rows(rows)
        start += len(rows)
    table.flush()
    return EMBEDDING


def emit_tokenizer(tokenizer: Path | None, folder: Path) -> str | None:
    """Copy the tokenizer, if there is one; its file's name."""
    if tokenizer is None:
        return None
    shutil.copyfile(tokenizer, folder / TOKENIZER)
    return TOKENIZER


def emit_labels(labels: Sequence[str] | None, folder: Path) -> str | None:
    """Write the names of classes, one a line, if they are known; their file's name."""
    if labels is None:
        return None
    (folder / LABELS).write_text("".join(f"{' '.join(label.split())}\n" for label in labels), encoding="utf-8")
    return LABELS


def emit_license(source: Path, folder: Path) -> None:
    """Copy the license that lies beside the checkpoint, if one does."""
    for name in _LICENSES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / "LICENSE")
            return


def planned_bytes(models: Iterable[ir.Model], recipe: Recipe, precision: Precision) -> int:
    """What the graphs and the embedding table will take on disk."""
    tensors = sum(map(weight_bytes, models))
    table = prod(recipe.weights.shape(recipe.embedding)) if recipe.embedding is not None else 0
    return tensors + table * _TABLE_BYTES[precision]


def weight_bytes(model: ir.Model) -> int:
    """What a graph's weights take on disk."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes + _PAGE_BYTES for tensor in tensors if tensor is not None)


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
