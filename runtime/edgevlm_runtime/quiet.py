"""Keep what image decoders say besides their errors away from the caller's warnings and stderr."""

from __future__ import annotations

import ctypes
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from PIL import _imaging

# Warning filters and libtiff's handlers belong to the process: two threads restoring them crosswise would lose the
# caller's.
_one_at_a_time = threading.Lock()


@contextmanager
def quiet_decoding() -> Iterator[None]:
    """No Python warnings and no lines of libtiff on stderr; both are as before afterwards. One thread at a time."""
    with _one_at_a_time, warnings.catch_warnings(), _quiet_libtiff():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Without its handlers libtiff prints nothing; Pillow reports its failures all the same."""
    setters = _libtiff_setters()
    before = [setter(None) for setter in setters]
    try:
        yield
    finally:
        for setter, handler in zip(setters, before, strict=True):
            setter(handler)


@cache
def _libtiff_setters() -> tuple[Any, ...]:
    """libtiff's functions that set a handler and give the one before; none where Pillow links it statically."""
    try:
        library = ctypes.CDLL(_imaging.__file__)
        setters = (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler)
    except (OSError, AttributeError):
        return ()
    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
    return setters
