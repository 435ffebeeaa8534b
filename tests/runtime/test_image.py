"""Images of every mode and format, and everything that is not one: pixels as expected, or BadImage on one line."""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from edgevlm_runtime.errors import BadImage
from edgevlm_runtime.image import MAX_BYTES, ImageSource, load_image


def photo(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth, with a red corner at the upper left, so that turns show."""
    across, down = np.meshgrid(np.linspace(0, 120, width), np.linspace(0, 120, height))
    image = Image.fromarray(np.dstack([across, down, across]).astype(np.uint8))
    ImageDraw.Draw(image).rectangle((0, 0, width // 4, height // 4), fill=(255, 0, 0))
    return image


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: bytes) -> bytes:
    """A PNG file written by hand: `rows` are its raw rows, each after a filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(source: object) -> str:
    """The message of the one error that is allowed."""
    with pytest.raises(BadImage) as error:
        load_image(source)  # type: ignore[arg-type]
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 500
    return message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_every_way_to_give_an_image_is_the_same(kind: str, tmp_path: Path) -> None:
    wanted = np.asarray(photo())
    data = encoded(photo(), kind)
    path = tmp_path / "photo.bin"
    path.write_bytes(data)
    for source in (str(path), path, data, bytearray(data), io.BytesIO(data), photo(), wanted):
        got = load_image(source)
        assert got.dtype == np.uint8 and got.flags.c_contiguous
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "JPEG2000"])
def test_lossy_formats(kind: str) -> None:
    data = encoded(photo(), kind)
    got = load_image(data)
    np.testing.assert_array_equal(got, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(got.astype(int) - np.asarray(photo())).mean() < 12


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_modes_convert_as_pillow_does(mode: str) -> None:
    plain = photo().convert("RGB")
    image = plain.convert("LA").convert("La") if mode == "La" else plain.convert(mode if mode != "RGBa" else "RGBA")
    image = image.convert(mode)
    wanted = image.convert("LA").convert("RGB") if mode == "La" else image.convert("RGB")
    np.testing.assert_array_equal(load_image(image), np.asarray(wanted))


def test_alpha_is_dropped_not_blended() -> None:
    pixels = np.dstack([np.asarray(photo()), np.zeros((24, 40), np.uint8)])
    for source in (pixels, Image.fromarray(pixels), encoded(Image.fromarray(pixels), "PNG")):
        np.testing.assert_array_equal(load_image(source), np.asarray(photo()))


def test_palette_with_transparency_warns_nobody(recwarn: pytest.WarningsRecorder) -> None:
    image = photo().convert("P")
    data = encoded(image, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(load_image(data), np.asarray(image.convert("RGB")))
    assert not recwarn.list


def test_cmyk_jpeg() -> None:
    data = encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(load_image(data).astype(int) - (255, 0, 0)).max() < 12


def test_gray_16_bit_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535 - 129, 65535 - 128, 65535]], np.uint16)
    wanted = np.round(values / 257).astype(np.uint8)
    rows = b"\0" + values.astype(">u2").tobytes()
    sources: list[ImageSource] = [png(8, 1, 16, 0, rows)]
    sources += [Image.fromarray(values), Image.fromarray(values.astype(np.int32))]
    sources += [encoded(Image.fromarray(values), kind) for kind in ("TIFF", "PNG")]
    big_endian = values.astype(">u2").tobytes()
    sources += [Image.frombytes("I;16B", (8, 1), big_endian), b"P5 8 1 65535\n" + big_endian]
    for source in sources:
        got = load_image(source)
        assert got.shape == (1, 8, 3)
        np.testing.assert_array_equal(got, np.repeat(wanted[..., None], 3, -1))


def test_color_16_bit() -> None:
    values = np.arange(6, dtype=np.uint16).reshape(1, 2, 3) * 257 * 40
    got = load_image(png(2, 1, 16, 2, b"\0" + values.astype(">u2").tobytes()))
    np.testing.assert_array_equal(got, values // 257)


def test_float_and_wide_integers_are_refused() -> None:
    assert "floating-point" in refused(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    assert "16 bits" in refused(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)))
    assert "Lab" in refused(Image.new("LAB", (4, 4)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    """Corner and size as the EXIF standard defines each orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = load_image(encoded(photo(), kind, exif=exif))
    assert got.shape[:2] == ((24, 40) if orientation < 5 else (40, 24))
    red = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        row, col = (index * 3 + (1 if index == 0 else 0) for index in corner)
        is_red = got[row, col, 0] > 200 and got[row, col, 1] < 60
        assert is_red == (corner == red), (corner, got[row, col])


def test_damaged_exif_does_not_spoil_an_image() -> None:
    data = encoded(photo(), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\xff")
    np.testing.assert_array_equal(load_image(data), np.asarray(photo()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(load_image(data).astype(int) - (250, 0, 0)).max() < 10


def test_callers_image_stays_as_it_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(photo(), "JPEG", exif=exif)))
    first = load_image(image)
    assert image.size == (40, 24) and image.getexif()[0x0112] == 6
    np.testing.assert_array_equal(load_image(image), first)
    assert first.shape == (40, 24, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 1)])
def test_thin_images(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 20, 30))
    for source in (image, encoded(image, "PNG"), encoded(image, "JPEG"), np.asarray(image)):
        assert load_image(source).shape == (size[1], size[0], 3)


def test_arrays() -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3, 4):
        pixels = rng.integers(0, 256, (9, 7, channels), np.uint8)
        wanted = np.repeat(pixels, 3, -1) if channels == 1 else pixels[..., :3]
        np.testing.assert_array_equal(load_image(pixels), wanted)
        np.testing.assert_array_equal(load_image(pixels[::-2, ::2]), wanted[::-2, ::2])
    np.testing.assert_array_equal(load_image(pixels[..., 0]), np.repeat(pixels[..., :1], 3, -1))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint16),
        np.zeros((4, 4), bool),
        np.zeros((4, 4), object),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros(7, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
        np.zeros((4, 4, 0), np.uint8),
        np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (50_000, 1001, 3)),
    ],
)
def test_arrays_that_are_refused(array: np.ndarray) -> None:
    assert str(array.dtype) in refused(array)


def test_header_is_checked_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for width, height in ((7072, 7071), (20_000, 20_000), (2**31 - 1, 2**31 - 1), (1_000_001, 1)):
        message = refused(png(width, height, 8, 2, b""))
        assert "megapixels" in message or "a side over" in message
    assert "megapixels" in refused(b"P6 9000 9000 255\n")


def test_limit_of_pillow_is_left_alone() -> None:
    load_image(encoded(photo(), "PNG"))
    assert Image.MAX_IMAGE_PIXELS == 89478485


def test_byte_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "256 MB" in refused(path)


def test_paths_that_are_refused(tmp_path: Path) -> None:
    assert "folder" in refused(tmp_path)
    assert "no such file" in refused(tmp_path / "missing.png")
    assert str(tmp_path / "missing.png") in refused(str(tmp_path / "missing.png"))
    empty = tmp_path / "empty.jpg"
    empty.touch()
    assert "empty.jpg: empty" in refused(empty)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe" in refused(tmp_path / "pipe")
    assert "device" in refused("/dev/zero")
    for name in ("", "a\0b", "x" * 5000, "line\nbreak.png", "https://example.com/a.png", "\udcff.png"):
        refused(name)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(photo(), "PNG"))

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # root may read everything
    assert "secret.png: no permission" in refused(path)


@pytest.mark.parametrize("source", [None, 3, 2.5, [1, 2], {}, object(), io.StringIO("text"), b"", io.BytesIO()])
def test_what_is_no_image(source: object) -> None:
    refused(source)


def test_files_that_fail() -> None:
    closed = io.BytesIO(b"x")
    closed.close()
    refused(closed)

    class Broken:
        def read(self, _: int) -> bytes:
            raise RuntimeError("two\nlines")

    assert "two lines" in refused(Broken())
    image = Image.open(io.BytesIO(encoded(photo(), "PNG")[:-60]))
    refused(image)


@pytest.mark.parametrize("kind", ["EPS", "PDF", "ICO", "TGA"])
def test_formats_that_stay_closed(kind: str) -> None:
    assert "not an image" in refused(encoded(photo(), kind))


FILES = [
    *(encoded(photo(), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")),
    encoded(photo(), "JPEG", progressive=True),
    encoded(photo(), "TIFF", compression="tiff_lzw"),
    encoded(photo(), "TIFF", compression="jpeg"),
    encoded(photo().convert("P"), "PNG", transparency=bytes(range(256))),
    encoded(photo(), "GIF", save_all=True, append_images=[photo().rotate(90)]),
    encoded(photo(), "MPO", save_all=True, append_images=[photo()]),
]


def test_truncation_anywhere(capfd: pytest.CaptureFixture[str]) -> None:
    for data in FILES:
        for length in {1, 2, 8, 16, 24, 32, *range(40, len(data) - 1, max(1, len(data) // 24))}:
            try:
                load_image(data[:length])
            except BadImage as error:
                assert "\n" not in str(error)
    for data in FILES[:2]:
        assert "truncated" in refused(data[: len(data) * 2 // 3])
    assert capfd.readouterr() == ("", "")  # libtiff is the one that would print


def test_libtiff_speaks_to_others_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    lzw = next(
        data for data in FILES if data[:2] == b"II" and Image.open(io.BytesIO(data)).info["compression"] == "tiff_lzw"
    )
    damaged = lzw.replace(lzw[8:40], b"\xff" * 32)
    refused(damaged)
    assert capfd.readouterr().err == ""
    with pytest.raises(OSError), Image.open(io.BytesIO(damaged)) as image:
        image.load()
    assert capfd.readouterr().err != ""


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prefix in (
            b"",
            b"\xff\xd8\xff\xe0",
            b"II*\0\x08\0\0\0",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"BM",
            b"P6 4 4 ",
        ):
            try:
                load_image(prefix + data)
            except BadImage as error:
                assert "\n" not in str(error)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=6))
def test_mutated_files(data: bytes, changes: list[tuple[int, int]]) -> None:
    mutated = bytearray(data)
    for place, value in changes:
        mutated[place % min(len(mutated), 400 if place % 2 else len(mutated))] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            pixels = load_image(bytes(mutated))
        except BadImage as error:
            assert "\n" not in str(error)
        else:
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def test_threads_leave_the_callers_warning_filters() -> None:
    data = encoded(photo().convert("P"), "PNG", transparency=bytes(range(256)))
    before = list(warnings.filters)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                load_image(data)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert warnings.filters == before


def test_every_other_error_of_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (struct.error("x"), OverflowError("x"), MemoryError(), zlib.error("x"), RecursionError(), KeyError(3)):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(Image, "open", fail)
        assert "can not be decoded" in refused(b"some bytes")
