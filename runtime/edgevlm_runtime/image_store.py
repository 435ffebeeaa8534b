"""Encoded images on disk: EDGEVLM_HOME/cache/images/<key>.image each, the least recently used removed first.

A store only saves time: an entry that is damaged is removed and as none at all, and one that can not be written is not
there the next time. Processes share it without locks: files appear whole by a rename, and who reads one keeps it open
while others remove it.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm_runtime.checksums import replacing
from edgevlm_runtime.errors import DamagedBundle, InvalidOption
from edgevlm_runtime.home import home
from edgevlm_runtime.image_file import MAX_HEADER_BYTES, Room, StoredImage, read_header, read_image, write_image

if TYPE_CHECKING:
    from edgevlm_runtime.engines import Array

DEFAULT_GB = 2.0

_SUFFIX = ".image"
_VARIABLE = "EDGEVLM_CACHE_GB"
# A file that is still being written is younger; an older one was left by a process that was killed.
_ABANDONED_S = 3600
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the store; `used_s` is the time of its last use in seconds since 1970, `image` None if damaged."""

    key: str
    bytes: int
    used_s: float
    image: StoredImage | None


class ImageStore:
    """The entries of one folder, which need not exist; together they take at most `limit_bytes`."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._is_writable = True

    def has(self, key: str) -> bool:
        """Whether there is an entry of that key, whole or damaged, or there can not be one."""
        return not self._is_writable or self._path(key).exists()

    def read(self, key: str, room: Room) -> StoredImage | None:
        """Fill the arrays of `room` with an entry's blocks; None where there is no such entry, or a damaged one."""
        path = self._path(key)
        start = time.perf_counter()
        try:
            with path.open("rb", buffering=0) as file:
                image = read_image(file, key, room)
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                _log.info("image cache: %s can not be read (%s)", path, error.strerror)
            return None
        except (ValueError, DamagedBundle) as error:
            _log.info("image cache: dropped %s: %s", path, error)
            _remove(path)
            return None
        with suppress(OSError):
            os.utime(path)
        _log.info("image cache: read %.1f MB in %.0f ms", image.data_bytes / 1e6, 1e3 * (time.perf_counter() - start))
        return image

    def write(self, image: StoredImage, blocks: Sequence[Array]) -> None:
        """Keep contiguous blocks, `image.data_bytes` in all, where they fit and the folder can be written."""
        path = self._path(image.key)
        n_bytes = image.data_bytes + MAX_HEADER_BYTES
        if n_bytes > self.limit_bytes:
            return
        start = time.perf_counter()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.make_room(n_bytes)
            # Images are private. Not synchronized: after a power cut the checksum tells.
            with replacing(path, mode=0o600, synchronize=False) as file:
                write_image(file, image, blocks)
        except OSError as error:
            self._is_writable = False  # a full disk would be filled to its end after every answer
            _log.info("image cache: %s can not be written (%s)", self.folder, error.strerror)
            return
        self.make_room(0)  # others may have written meanwhile
        _log.info("image cache: saved %.1f MB in %.0f ms", n_bytes / 1e6, 1e3 * (time.perf_counter() - start))

    def make_room(self, n_bytes: int) -> None:
        """Remove what was not used for longest until `n_bytes` more fit, and what killed processes left."""
        files = self._files()
        total = sum(status.st_size for _, status in files) + n_bytes
        for path, status in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if total <= self.limit_bytes:
                break
            _remove(path)
            total -= status.st_size
        for path, status in self._files(unfinished=True):
            if time.time() - status.st_mtime > _ABANDONED_S:
                _remove(path)

    def entries(self) -> list[Entry]:
        """All entries, the last used first."""
        found = [
            Entry(key=path.stem, bytes=status.st_size, used_s=status.st_mtime, image=_peek(path))
            for path, status in self._files()
        ]
        return sorted(found, key=lambda entry: entry.used_s, reverse=True)

    def clear(self) -> None:
        """Remove all entries, and what is unfinished.

        Raises:
            OSError: one can not be removed.
        """
        for path, _ in (*self._files(), *self._files(unfinished=True)):
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _files(self, *, unfinished: bool = False) -> list[tuple[Path, os.stat_result]]:
        """The files of entries, or of those that are being written; nothing else in the folder is touched."""
        pattern = f".*{_SUFFIX}.*" if unfinished else f"[!.]*{_SUFFIX}"
        return [(path, status) for path in self.folder.glob(pattern) for status in _status(path)]


def default_store() -> ImageStore | None:
    """The store under EDGEVLM_HOME, of EDGEVLM_CACHE_GB at most; None where that is 0.

    Raises:
        InvalidOption: EDGEVLM_CACHE_GB is no number of at least 0.
    """
    limit = limit_bytes()
    return ImageStore(store_folder(), limit) if limit else None


def store_folder() -> Path:
    """Where encoded images are kept. It need not exist."""
    return home() / "cache" / "images"


def limit_bytes() -> int:
    """How much the store may take: EDGEVLM_CACHE_GB in bytes; raises as `default_store`."""
    text = os.environ.get(_VARIABLE, "").strip() or str(DEFAULT_GB)
    with suppress(ValueError, OverflowError):
        gigabytes = float(text)
        if math.isfinite(gigabytes) and gigabytes >= 0:
            return int(gigabytes * 1e9)
    raise InvalidOption(f"{_VARIABLE} must be a number of at least 0, not {text!r:.40}")


def _peek(path: Path) -> StoredImage | None:
    """What an entry says of itself, of whose blocks nothing is read."""
    with suppress(OSError, ValueError, DamagedBundle), path.open("rb", buffering=0) as file:
        return read_header(file)[1]
    return None


def _status(path: Path) -> Iterator[os.stat_result]:
    """The status of a regular file that is still there."""
    with suppress(OSError):
        status = path.stat(follow_symlinks=False)
        if stat.S_ISREG(status.st_mode):
            yield status


def _remove(path: Path) -> None:
    # Windows keeps files that others have open; they are removed another time.
    with suppress(OSError):
        path.unlink(missing_ok=True)
