"""Whatever a caller calls an image -> upright RGB pixels, uint8 (height, width, 3), or BadImage.

Limits on bytes and pixels are checked before anything is decoded. Knows nothing of models.
"""

from __future__ import annotations

import importlib
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from edgevlm_runtime.errors import BadImage
from edgevlm_runtime.quiet import quiet_decoding

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | BinaryIO | npt.NDArray[Any] | Image.Image
Pixels: TypeAlias = npt.NDArray[np.uint8]

MAX_PIXELS = 50_000_000
MAX_BYTES = 256 << 20
# Resizing keeps six weights for each pixel of a side.
MAX_SIDE_PX = 1_000_000

# Formats of photographs and screenshots. Others stay closed: EPS would start Ghostscript, TGA takes any bytes.
_PLUGINS = {
    "JPEG": "Jpeg",
    "PNG": "Png",
    "WEBP": "WebP",
    "GIF": "Gif",
    "BMP": "Bmp",
    "TIFF": "Tiff",
    "PPM": "Ppm",
    "JPEG2000": "Jpeg2K",
    "AVIF": "Avif",
}
for _plugin in _PLUGINS.values():
    with suppress(ImportError):  # AVIF came with Pillow 11.3
        importlib.import_module(f"PIL.{_plugin}ImagePlugin")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(source: ImageSource) -> Pixels:
    """Upright RGB pixels, uint8 (height, width, 3), of a path, bytes, a binary file, an array or a PIL image.

    Alpha is dropped as PIL's convert("RGB") does, 16-bit grey is scaled to 8 bits, and of an animation the first
    frame is taken. Arrays are uint8, (height, width) or (height, width, 1, 3 or 4). The result may be read-only.

    Raises:
        BadImage: not an image, damaged, empty, or over MAX_PIXELS, MAX_BYTES or MAX_SIDE_PX.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        with _decoding("the PIL image"):
            return _to_rgb(source, "the PIL image")
    return decode_image(*_read(source))


def decode_image(data: bytes, name: str) -> Pixels:
    """`load_image` of an image file's bytes; `name` is what messages call it.

    Raises:
        BadImage: as `load_image`.
    """
    if not data:
        raise BadImage(f"{name}: empty, there is no image in it")
    if len(data) > MAX_BYTES:
        raise BadImage(f"{name}: more than {MAX_BYTES >> 20} MB; save the image smaller")
    formats = [name for name in (*_PLUGINS, "HEIF") if name in Image.OPEN]  # HEIF: where the caller registered it
    with _decoding(name), Image.open(io.BytesIO(data), formats=formats) as image:
        return _to_rgb(image, name)


def _read(source: object) -> tuple[bytes, str]:
    """At most MAX_BYTES + 1 bytes, and what to call them in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source[: MAX_BYTES + 1]), "the image's bytes"
    if isinstance(source, str | os.PathLike):
        return read_image_file(source)
    if callable(getattr(source, "read", None)):
        return _read_file(source), "the image file"
    kinds = "a path, bytes, a binary file, a NumPy array or a PIL image"
    raise BadImage(f"{type(source).__name__} can not be read as an image; give {kinds}")


def read_image_file(source: str | os.PathLike[str]) -> tuple[bytes, str]:
    """A file's bytes, one more than MAX_BYTES where it is larger, and what to call it in messages.

    Raises:
        BadImage: there is no file that can be read.
    """
    name = _shown(os.fspath(source))
    try:
        path = Path(source)
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise BadImage(f"{name}: a folder, not an image; give a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise BadImage(f"{name}: a device or pipe, not a file; save the image first, or pass its bytes")
        if status.st_size > MAX_BYTES:
            return b"\0" * (MAX_BYTES + 1), name
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1), name
    except FileNotFoundError as error:
        raise BadImage(f"{name}: there is no such file; check the path") from error
    except PermissionError as error:
        raise BadImage(f"{name}: no permission to read it; check its owner and mode") from error
    except (OSError, ValueError, TypeError, MemoryError) as error:  # a NUL in the name, an I/O error, a path of bytes
        raise BadImage(f"{name}: can not be read ({_line(error)})") from error


def _shown(path: object) -> str:
    """A path as one printable line that is not too long."""
    text = path if isinstance(path, str) and path.isprintable() and path else repr(path)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-150:]}"


def _read_file(file: Any) -> bytes:
    try:
        data = file.read(MAX_BYTES + 1)
    except Exception as error:  # the caller's own object
        raise BadImage(f"the image file can not be read ({_line(error)})") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadImage(f"the image file gives {type(data).__name__}, not bytes; open it in binary mode")
    return bytes(data)


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn all that Pillow raises into BadImage, and keep its warnings to itself."""
    with quiet_decoding():
        try:
            yield
        except BadImage:
            raise
        except UnidentifiedImageError as error:
            known = ", ".join(_PLUGINS)
            raise BadImage(f"{name}: not an image, or damaged at its start; these can be read: {known}") from error
        except Image.DecompressionBombError as error:
            raise BadImage(f"{name}: {_too_many_pixels()}") from error
        except Exception as error:  # decoders of damaged files raise nearly anything: struct.error, SyntaxError, ...
            raise BadImage(f"{name}: can not be decoded ({_line(error)}); it is truncated or corrupt") from error


def _to_rgb(image: Image.Image, name: str) -> Pixels:
    _check_size(*image.size, name)
    image.load()
    turn = _turn(image)
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):
        return _gray16_to_rgb(np.asarray(upright), name)
    if upright.mode in ("F", "LAB"):
        kind = "floating-point" if upright.mode == "F" else "Lab"
        raise BadImage(f"{name}: {kind} pixels have no fixed meaning as RGB; save it as an 8-bit RGB image")
    if upright.mode == "La":  # Pillow knows no direct way
        upright = upright.convert("LA")
    return np.asarray(upright.convert("RGB"))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What EXIF's orientation asks for; damaged EXIF data do not spoil an image."""
    with suppress(Exception):
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return None


def _gray16_to_rgb(values: npt.NDArray[Any], name: str) -> Pixels:
    """0..65535 to 0..255, rounded."""
    if values.min() < 0 or values.max() > 65535:
        raise BadImage(f"{name}: gray values outside 16 bits; save it as an 8-bit image")
    gray = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _from_array(array: npt.NDArray[Any]) -> Pixels:
    shown = f"the image array, {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise BadImage(f"{shown}: uint8 values 0..255 are needed; scale and convert it first")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise BadImage(f"{shown}: (height, width), or (height, width, channels) with 1, 3 or 4 channels, is needed")
    _check_size(array.shape[1], array.shape[0], shown)
    channels = np.asarray(array).reshape(*array.shape[:2], -1)
    if channels.shape[2] == 1:
        channels = np.repeat(channels, 3, axis=2)
    return np.ascontiguousarray(channels[:, :, :3])


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"{name}: {width} x {height}, there are no pixels in it")
    if width * height > MAX_PIXELS:
        raise BadImage(f"{name}: {width} x {height}, {_too_many_pixels()}")
    if max(width, height) > MAX_SIDE_PX:
        raise BadImage(f"{name}: {width} x {height}, a side over {MAX_SIDE_PX} pixels; cut it")


def _too_many_pixels() -> str:
    return f"more than {MAX_PIXELS // 1_000_000} megapixels; scale it down"


def _line(error: BaseException) -> str:
    """An error's message on one line, without the path that an OSError repeats."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return " ".join(text.split()) or type(error).__name__
