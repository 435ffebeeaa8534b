"""A folder of images as embeddings: found, cached beside the images and refreshed by file hash, then ranked.

Knows nothing of models: what makes an embedding of pixels is given.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgevlm_runtime.checksums import write_atomically
from edgevlm_runtime.engines import FloatArray
from edgevlm_runtime.errors import BadImage, InvalidOption
from edgevlm_runtime.image import Pixels, decode_image, read_image_file

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif"),
)
CACHE_FOLDER = ".edgevlm"


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One image of a folder, and how alike it is to the text: the cosine of their embeddings, -1 to 1.

    `probability` says whether they belong together, for models that judge each pair by itself.
    """

    path: str
    score: float
    probability: float | None = None


class Skipped(NamedTuple):
    """A file or folder that can not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The best of the `n_images` images of a folder that could be read, the most alike first; and the others."""

    hits: tuple[Hit, ...]
    skipped: tuple[Skipped, ...]
    n_images: int


@dataclass(frozen=True, kw_only=True)
class Indexed:
    """All images of a folder that can be read, with their embeddings (images, dim), and the others."""

    paths: tuple[str, ...]
    embeddings: FloatArray
    skipped: tuple[Skipped, ...]


def find_images(folder: str | os.PathLike[str]) -> tuple[list[Path], list[Skipped]]:
    """The image files in a folder and below by their suffix, sorted, without hidden ones; folders that stay closed.

    Raises:
        InvalidOption: it is not a folder, or there is no image in it.
    """
    root = Path(folder)
    closed: list[OSError] = []
    found = []
    if not root.is_dir():
        raise InvalidOption(f"{root}: not a folder; give one with images in it")
    for parent, folders, files in os.walk(root, onerror=closed.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if _is_image(name)]
    if not found and not closed:
        raise InvalidOption(f"{root}: no images in it; give a folder with files such as .jpg or .png")
    return sorted(found), [Skipped(str(error.filename), error.strerror or "can not be opened") for error in closed]


class FolderIndex:
    """The embeddings of one folder's images by one model, whose `name` and `fingerprint` name the cache's file.

    The cache only saves time: one that is damaged, or can not be written, is as none at all.
    """

    def __init__(self, folder: str | os.PathLike[str], *, name: str, fingerprint: str, dim: int) -> None:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
        self._folder = folder
        self._path = Path(folder, CACHE_FOLDER, f"{plain}-{fingerprint[:12]}.npz")
        self._dim = dim

    def refresh(self, embed: Callable[[Pixels], FloatArray], done: Callable[[], None] | None = None) -> Indexed:
        """Look through the folder; `embed` makes (dim,) of an image that is new or has changed.

        `done` is called after each of the files that `find_images` finds. What is raised in between keeps the
        embeddings that were made so far.

        Raises:
            InvalidOption: as `find_images`.
        """
        files, skipped = find_images(self._folder)
        cached = self._read()
        known = dict(cached)
        digests: dict[str, str] = {}
        try:
            for file in files:
                try:
                    digests[str(file)] = _learn(file, known, embed)
                except BadImage as error:
                    skipped.append(Skipped(str(file), str(error).removeprefix(f"{file}: ")))
                if done is not None:
                    done()
            known = {digest: known[digest] for digest in digests.values()}
        finally:
            if known.keys() != cached.keys():
                self._write(known)
        embeddings = [known[digest] for digest in digests.values()]
        return Indexed(
            paths=tuple(digests),
            embeddings=np.array(embeddings, np.float32).reshape(-1, self._dim),
            skipped=tuple(skipped),
        )

    def _read(self) -> dict[str, FloatArray]:
        """Embeddings by the SHA-256 of their file."""
        with suppress(Exception):  # a damaged archive raises nearly anything
            data = self._path.read_bytes()
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                digests, embeddings = arrays["digests"], arrays["embeddings"]
                sound = str(arrays["checksum"]) == _checksum(digests.tolist(), embeddings)
            if sound and embeddings.shape == (len(digests), self._dim) and embeddings.dtype == np.float32:
                return dict(zip(digests.tolist(), embeddings, strict=True))
        return {}

    def _write(self, known: Mapping[str, FloatArray]) -> None:
        digests, embeddings = list(known), np.array(list(known.values()), np.float32).reshape(-1, self._dim)
        archive = io.BytesIO()
        np.savez(archive, digests=digests, embeddings=embeddings, checksum=_checksum(digests, embeddings))
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            write_atomically(self._path, archive.getvalue())


def rank(scores: FloatArray, top_k: int) -> Iterator[int]:
    """The indices of the `top_k` highest of scores (images,), the highest first; of equals the first comes first."""
    return (int(index) for index in np.argsort(-scores, kind="stable")[:top_k])


def _learn(file: Path, known: dict[str, FloatArray], embed: Callable[[Pixels], FloatArray]) -> str:
    """Make sure that a file's embedding is known; its SHA-256."""
    data, name = read_image_file(file)
    digest = hashlib.sha256(data).hexdigest()
    if digest not in known:
        known[digest] = embed(decode_image(data, name))
    return digest


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _checksum(digests: list[str], embeddings: FloatArray) -> str:
    return hashlib.sha256("".join(digests).encode() + embeddings.tobytes()).hexdigest()
