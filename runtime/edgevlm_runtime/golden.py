"""golden.npz: an image and questions about it, what the original model makes of them, and how far a bundle may be off.

Reads and writes the file; what is run on it is in verify.py. Arrays only: no pickles.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar, cast, get_args

import numpy as np

from edgevlm_runtime.engines import Array, FloatArray
from edgevlm_runtime.errors import DamagedBundle
from edgevlm_runtime.fidelity import Limits
from edgevlm_runtime.manifest import Role

GOLDEN = "golden.npz"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class GoldenGraph:
    """Some rows of one graph's output, all of its leading axes taken as one: float32 values (rows, dim).

    `given` is the graph's input; None where the image decides it, for the graphs that make its tokens.
    """

    role: Role
    row_ids: Array
    values: FloatArray
    given: Array | None = None


@dataclass(frozen=True, kw_only=True)
class GoldenAnswer:
    """One prompt after the image, and the ids that the bundle chose greedily where it was exported.

    `logits` float32 (n,) are the original's for the first token, those of the vocabulary's `logit_ids`.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logit_ids: Array
    logits: FloatArray


@dataclass(frozen=True, kw_only=True)
class Golden:
    """All of golden.npz. `image` is an encoded image file's bytes, cut into at most `max_crops` local crops."""

    image: bytes
    max_crops: int
    graphs: tuple[GoldenGraph, ...]
    answer: GoldenAnswer
    limits: Limits


def write_golden(path: Path, golden: Golden) -> None:
    """Write the file, compressed."""
    arrays: dict[str, Array] = {
        "image": np.frombuffer(golden.image, np.uint8),
        "max_crops": np.array(golden.max_crops),
        "prompt": np.array(golden.answer.prompt, np.int64),
        "answer": np.array(golden.answer.answer, np.int64),
        "logit_ids": golden.answer.logit_ids,
        "logits": golden.answer.logits,
    }
    arrays |= {f"limit.{name}": np.array(value) for name, value in asdict(golden.limits).items()}
    for graph in golden.graphs:
        arrays |= {f"graph.{graph.role}.rows": graph.row_ids, f"graph.{graph.role}.values": graph.values}
        if graph.given is not None:
            arrays[f"graph.{graph.role}.given"] = graph.given
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes ** for its own option


def read_golden(path: Path) -> Golden:
    """Read the file.

    Raises:
        DamagedBundle: it is not of this form.
    """
    return read_arrays(path, _read)


def read_arrays(path: Path, read: Callable[[Mapping[str, Array]], T]) -> T:
    """What `read` makes of the arrays of a golden.npz, by name.

    Raises:
        DamagedBundle: the file is no such archive, or `read` misses an array or finds one misshapen.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return read(arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedBundle(f"{path}: not golden vectors ({error}); export or pull the model again") from error


def _read(arrays: Mapping[str, Array]) -> Golden:
    return Golden(
        image=arrays["image"].tobytes(),
        max_crops=int(arrays["max_crops"]),
        graphs=tuple(_read_graphs(arrays)),
        answer=GoldenAnswer(
            prompt=tuple(arrays["prompt"].tolist()),
            answer=tuple(arrays["answer"].tolist()),
            logit_ids=arrays["logit_ids"],
            logits=arrays["logits"],
        ),
        limits=Limits(**{field.name: float(arrays[f"limit.{field.name}"]) for field in fields(Limits)}),
    )


def _read_graphs(arrays: Mapping[str, Array]) -> Iterator[GoldenGraph]:
    for key in arrays:
        kind, _, rest = key.partition(".")
        role, _, part = rest.rpartition(".")
        if kind == "graph" and part == "values":
            yield GoldenGraph(
                role=role_named(role),
                row_ids=arrays[f"graph.{role}.rows"],
                values=arrays[key],
                given=arrays.get(f"graph.{role}.given"),
            )


def role_named(name: str) -> Role:
    """A graph's role, read from a file.

    Raises:
        ValueError: there is none of that name.
    """
    for role in get_args(Role):
        if role == name:
            return cast(Role, role)
    raise ValueError(f"unknown graph {name}")
