"""SHA-256 of a bundle's files, and the memory of files that were hashed before and have not changed since.

Hashing 2 GB takes a second or two on every start, so a small JSON file in the user's cache remembers large files by
size, times and inode. It is only an optimization: where it can not be read or written, files are hashed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from edgevlm_runtime.home import home

_CHUNK_BYTES = 1 << 20
# Smaller files are hashed on every load (8 MB take about 8 ms).
_REMEMBERED_BYTES = 8 << 20
# A file changed this recently may change again without a new timestamp, so it is not remembered (as git's index does).
_SETTLED_NS = 2_000_000_000


def hash_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: the file can not be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, contents: str | bytes) -> None:
    """Write a file, text as UTF-8, so that readers see the old or the new one, never a part.

    Raises:
        OSError: the disk is full or the folder not writable; the old file stays as it was.
    """
    with replacing(path) as file:
        file.write(contents.encode() if isinstance(contents, str) else contents)


@contextmanager
def replacing(path: Path, *, mode: int = 0o644, synchronize: bool = True) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place at the end; on an error it is removed. Raises as `write_atomically`.

    With `synchronize` its contents are on the disk before.
    """
    handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if synchronize:
                os.fsync(file.fileno())
        os.chmod(beside, mode)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


class HashMemory:
    """Which large files of one bundle had which SHA-256 when they were last read."""

    def __init__(self, root: Path) -> None:
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
        self._path = home() / "hashed" / f"{name}.json"
        self._known = self._read()

    def hash(self, path: Path, *, fresh: bool) -> str:
        """The SHA-256 of a file; read from the disk when `fresh`, small, or not seen in this state before."""
        status = path.stat()
        state = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        known = self._known.get(str(path), "")
        if not fresh and status.st_size >= _REMEMBERED_BYTES and known.startswith(f"{state} "):
            return known.rpartition(" ")[2]
        digest = hash_file(path)
        settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS
        if settled and status.st_size >= _REMEMBERED_BYTES:
            self._known[str(path)] = f"{state} {digest}"
            self._write()
        return digest

    def _read(self) -> dict[str, str]:
        with suppress(OSError, ValueError, RecursionError):
            data = json.loads(self._path.read_bytes())
            if isinstance(data, dict) and all(isinstance(value, str) for value in data.values()):
                return data
        return {}

    def _write(self) -> None:
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, json.dumps(self._known, indent=1))
