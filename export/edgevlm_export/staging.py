"""A bundle is written beside its place and renamed when it is whole; nothing half-written stays."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm_runtime.errors import ExportError

_MANIFEST = "manifest.json"


@contextmanager
def staging(out: Path, *, force: bool) -> Iterator[Path]:
    """A new folder that becomes `out` when the block ends, and is removed when it fails or is interrupted.

    With force an existing bundle is replaced, and only once the new one is whole.

    Raises:
        ExportError: `out` exists, is no bundle, or the disk is full or can not be written.
    """
    _check_out(out, force=force)
    folder = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        folder.mkdir(parents=True)
        yield folder
        _move(folder, out)
    except OSError as error:
        raise ExportError(_explain(error, out)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start what the disk can not hold.

    Raises:
        ExportError: fewer bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ExportError(
            f"{folder.parent}: {needed_bytes / 1e6:,.1f} MB needed, {free / 1e6:,.1f} MB free; "
            "make room or choose another OUT"
        )


def _check_out(out: Path, *, force: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not force:
        raise ExportError(f"{out}: exists already; remove it, choose another OUT, or replace it with --force")
    if not (out / _MANIFEST).is_file():
        raise ExportError(f"{out}: exists and is not a bundle, so --force will not replace it; choose another OUT")


def _move(folder: Path, out: Path) -> None:
    if not out.exists() and not out.is_symlink():
        folder.rename(out)
        return
    old = out.parent / f".{out.name}.replaced-{os.getpid()}"
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:  # Ctrl-C too
        old.rename(out)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def _explain(error: OSError, out: Path) -> str:
    # NumPy reports a short write, which is a full disk, in words only.
    if error.errno == errno.ENOSPC or "requested and" in str(error):
        return f"{out}: the disk is full; make room or choose another OUT"
    return f"{error.filename or out}: {error.strerror or error}; the export was given up"
