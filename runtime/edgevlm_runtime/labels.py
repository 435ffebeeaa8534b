"""Classes of an image: logits to probabilities, the likeliest of them, and labels.txt, which has their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import DamagedBundle


@dataclass(frozen=True, kw_only=True)
class Label:
    """One class: its number among all, its name, and how likely it is, from 0 to 1."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class ImageTimings:
    """Wall times: `load_ms` is spent once per model, `image_ms` from the file to the answer.

    Of images that are asked about together `image_ms` is their mean.
    """

    load_ms: float
    image_ms: float


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The likeliest classes of an image, the likeliest first."""

    labels: tuple[Label, ...]
    timings: ImageTimings


def likeliest(probabilities: npt.NDArray[Any], names: tuple[str, ...], top_k: int) -> tuple[Label, ...]:
    """The `top_k` best of probabilities (classes,), or all where there are fewer; of equals the first comes first."""
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return tuple(Label(index=int(i), name=names[i], probability=float(probabilities[i])) for i in best)


def softmax(logits: FloatArray) -> npt.NDArray[np.float64]:
    """Probabilities of logits (images, classes) that add up to 1 for each image."""
    shifted = np.asarray(logits, np.float64)
    exponentials = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=-1, keepdims=True))


def sigmoid(logits: FloatArray) -> npt.NDArray[np.float64]:
    """A probability for each logit by itself."""
    # As a hyperbolic tangent it does not overflow.
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64))))


def read_labels(path: Path, n_classes: int) -> tuple[str, ...]:
    """The names of classes, one a line.

    Raises:
        DamagedBundle: the file can not be read, or has another number of lines.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedBundle(f"{path}: not a list of labels ({error}); export or pull the model again") from error
    names = tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))
    if len(names) != n_classes:
        raise DamagedBundle(f"{path}: {len(names)} labels for {n_classes} classes; export the model again")
    return names
