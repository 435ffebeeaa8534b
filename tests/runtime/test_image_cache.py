"""The image cache: the same answers without encoding, what makes an image another one, and a store that may fail."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import resource
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.errors import ContextOverflow, InvalidOption
from edgevlm_runtime.image_cache import ImageCache, open_image_cache
from edgevlm_runtime.image_file import StoredImage
from edgevlm_runtime.image_store import ImageStore, default_store
from edgevlm_runtime.model import Model
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from edgevlm_runtime.preprocess import CropGrid
from tests.runtime.fake_bundle import make_model, write_bundle
from tests.runtime.fake_engine import FakeEngine, TinyDecoder

Pixels = npt.NDArray[np.uint8]
SHORT = GenerateOptions(max_tokens=8, logits=True)
# 9 tokens of 16 numbers, and 10 positions of 2 layers' keys and values with one head of 8.
IMAGE_BYTES = 4 * (9 * 16 + 10 * 2 * 2 * 8)


class Counted:
    """A model, and which graphs of images it ran."""

    def __init__(self, bundle: Bundle, *, memory_bytes: int = 0, folder: Path | None = None, engine: str = "a") -> None:
        self.ran: list[str] = []
        self.decoder = TinyDecoder(320)
        self.store = None if folder is None else ImageStore(folder, 10**6)
        images = ImageCache(bundle, engine, memory_bytes=memory_bytes, store=self.store)
        self.model = Model(bundle, FakeEngine(self.decoder, self.ran.append), images=images)

    def encodes(self, image: Pixels, max_crops: int | None = None) -> bool:
        """Whether an image must be encoded; afterwards it was asked about and is in the store, if there is one."""
        before = len(self.ran)
        self.model.query(image, "how many", replace(SHORT, max_crops=max_crops))
        self.model._encoded._wait()
        return len(self.ran) > before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a store goes that does not exist yet."""
    return tmp_path / "cache" / "images"


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What the runtime has logged."""
    caplog.set_level(logging.INFO, "edgevlm_runtime")
    return lambda: caplog.text


def colors(count: int) -> list[Pixels]:
    """Images of the same size."""
    return [np.full((6, 6, 3), 20 * index, np.uint8) for index in range(count)]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_the_same_pixels_are_encoded_once_and_answer_the_same(bundle: Bundle, photo: Pixels) -> None:
    plain, _ = make_model(bundle)
    counted = Counted(bundle, memory_bytes=10**6)
    for question in ("how many", "where?", "how many"):
        expected, answer = plain.query(photo, question, SHORT), counted.model.query(photo.copy(), question, SHORT)
        assert answer.token_ids == expected.token_ids
        np.testing.assert_array_equal(answer.first_logits, expected.first_logits)
    assert counted.model.detect(photo, "cup").objects == plain.detect(photo, "cup").objects
    assert counted.ran.count("project") == 1
    assert counted.model.encode(photo) is counted.model.encode(photo)


def test_without_a_cache_nothing_is_remembered(bundle: Bundle, photo: Pixels) -> None:
    counted = Counted(bundle)
    assert counted.encodes(photo) and counted.encodes(photo)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_makes_an_image_another_one(bundle: Bundle, photo: Pixels, folder: Path, kind: str) -> None:
    where = {"memory_bytes": 10**6} if kind == "memory" else {"folder": folder}
    counted = Counted(bundle, **where)
    assert counted.encodes(photo)
    other = photo.copy()
    other[3, 4, 1] ^= 1
    assert counted.encodes(other)
    assert counted.encodes(np.ascontiguousarray(photo.reshape(33, 20, 3)))
    assert counted.encodes(photo, max_crops=1)
    assert not counted.encodes(photo, max_crops=1)
    assert not counted.encodes(photo, max_crops=100), "the grid is the same as with the model's own limit"
    assert not counted.encodes(photo)


def test_another_model_precision_or_engine_does_not_share(
    bundle: Bundle, photo: Pixels, folder: Path, tmp_path: Path
) -> None:
    assert Counted(bundle, folder=folder).encodes(photo)
    assert not Counted(bundle, folder=folder).encodes(photo)
    assert Counted(bundle, folder=folder, engine="b").encodes(photo)
    manifest = bundle.manifest
    assert manifest.image is not None
    changes = (
        {"name": "other"},
        {"precision": "int8"},
        {"image": replace(manifest.image, resample="bicubic")},
        {"files": {**manifest.files, "extra": next(iter(manifest.files.values()))}},
    )
    for change in changes:
        other = replace(bundle, manifest=replace(manifest, **change))
        assert Counted(other, folder=folder).encodes(photo), change
    assert len(files(folder)) == 2 + len(changes)
    assert not Counted(write_bundle(tmp_path / "elsewhere"), folder=folder).encodes(photo), "a copy is the same"


def test_the_layout_of_the_decoders_cache_is_part_of_the_key(bundle: Bundle, photo: Pixels) -> None:
    model = Counted(bundle).model
    assert model._open_parts().decoder.new_cache().layout == " ".join(["float32 1x(8,)"] * 4)
    grid = CropGrid(rows=1, cols=1)
    assert len({model._encoded._key(photo, grid, layout) for layout in ("float32 1x(8,)", "float16 1x(8,)")}) == 2


def test_memory_forgets_what_was_not_used_for_longest(bundle: Bundle) -> None:
    first, second, third = colors(3)
    counted = Counted(bundle, memory_bytes=2 * IMAGE_BYTES)
    assert counted.encodes(first) and counted.encodes(second)
    assert not counted.encodes(first)
    assert counted.encodes(third)
    assert not counted.encodes(first) and not counted.encodes(third)
    assert counted.encodes(second)
    assert counted.model.encode(second).nbytes == IMAGE_BYTES
    small = Counted(bundle, memory_bytes=IMAGE_BYTES - 1)
    assert small.encodes(first) and small.encodes(first)


def test_a_new_process_answers_the_same_without_encoding(bundle: Bundle, photo: Pixels, folder: Path) -> None:
    first = Counted(bundle, folder=folder)
    expected = first.model.query(photo, "how many", SHORT)
    places = first.model.detect(photo, "cup").objects
    first.model.close()
    later = Counted(bundle, folder=folder)
    image = later.model.encode(photo)
    assert (image.width, image.height, image.embeddings.shape) == (33, 20, (9, 16))
    assert later.decoder.calls == []
    answer = later.model.query(image, "how many", SHORT)
    assert answer.token_ids == expected.token_ids
    assert answer.usage == expected.usage
    np.testing.assert_array_equal(answer.first_logits, expected.first_logits)
    assert later.model.detect(photo, "cup").objects == places
    assert "vision" not in later.ran


def test_an_image_that_does_not_fit_a_context_stays_on_disk(bundle: Bundle, photo: Pixels, folder: Path) -> None:
    assert Counted(bundle, folder=folder).encodes(photo)
    images = ImageCache(bundle, "a", store=ImageStore(folder, 10**6))
    model = Model(bundle, FakeEngine(TinyDecoder(320)), context=9, images=images)
    with pytest.raises(ContextOverflow, match="takes 10 tokens, but only 9 of the 9 positions of `context`"):
        model.encode(photo)
    assert not Counted(bundle, folder=folder).encodes(photo)


def test_an_image_is_saved_when_an_answer_is_complete(bundle: Bundle, photo: Pixels, folder: Path) -> None:
    counted = Counted(bundle, folder=folder)
    image = counted.model.encode(photo)
    with counted.model.stream(image, "how many", SHORT) as stream:
        next(stream)
        assert files(folder) == []
    counted.model.query(image, "how many", SHORT)
    counted.model.close()
    (path,) = files(folder)
    assert path.stat().st_mode & 0o777 == 0o600, "images are private"
    written = path.stat().st_mtime_ns, path.read_bytes()
    again = Counted(bundle, folder=folder)
    assert not again.encodes(photo)
    assert path.read_bytes() == written[1]
    assert path.stat().st_mtime_ns > written[0], "its last use"


@pytest.mark.parametrize("damage", range(10))
def test_a_damaged_entry_is_dropped_and_made_again(
    bundle: Bundle, photo: Pixels, folder: Path, log: Callable[[], str], damage: int
) -> None:
    plain, _ = make_model(bundle)
    assert Counted(bundle, folder=folder).encodes(photo)
    (path,) = files(folder)
    good = path.read_bytes()
    header = good.index(b"\n")
    bad = (
        b"",
        good[:100],
        good[: header + 1],
        good[:-1],
        good + b"\0",
        good[: header + 900] + bytes([good[header + 900] ^ 16]) + good[header + 901 :],
        good[:-1] + bytes([good[-1] ^ 1]),
        good.replace(b'"width": 33', b'"width": 34'),
        good.replace(b'"tokens": 9', b'"tokens": 7'),
        os.urandom(len(good)),
    )
    path.write_bytes(bad[damage])
    counted = Counted(bundle, folder=folder)
    assert counted.encodes(photo)
    assert f"dropped {path}" in log()
    assert path.read_bytes() == good
    assert counted.model.query(photo, "a", SHORT).token_ids == plain.query(photo, "a", SHORT).token_ids


def test_an_entry_under_another_name_is_not_believed(bundle: Bundle, folder: Path) -> None:
    one, other = colors(2)
    counted = Counted(bundle, folder=folder)
    assert counted.encodes(one)
    (first,) = files(folder)
    assert counted.encodes(other)
    (second,) = set(files(folder)) - {first}
    second.write_bytes(first.read_bytes())
    assert Counted(bundle, folder=folder).encodes(other)


def test_a_folder_that_can_not_be_made_is_no_error(
    bundle: Bundle, photo: Pixels, tmp_path: Path, log: Callable[[], str]
) -> None:
    (tmp_path / "file").touch()
    counted = Counted(bundle, folder=tmp_path / "file" / "images")
    assert counted.encodes(photo) and counted.encodes(photo)
    assert log().count("can not be written") == 1, "tried once"


def test_a_full_disk_is_no_error_and_leaves_nothing(bundle: Bundle, photo: Pixels, folder: Path) -> None:
    counted = Counted(bundle, folder=folder)
    with file_size_limit(1024):
        assert counted.encodes(photo)
    assert files(folder) == []


def test_the_disk_forgets_what_was_not_used_for_longest(folder: Path) -> None:
    store = ImageStore(folder, 3 * 20_000)
    for key, age_s in (("a", 30), ("b", 20), ("c", 10)):
        write(store, key)
        os.utime(folder / f"{key}.image", (time.time() - age_s, time.time() - age_s))
    assert read(store, "a") is not None
    for name, age_s in ((".x.image.killed", 7200), (".y.image.busy", 60), ("notes.txt", 7200)):
        (folder / name).write_bytes(b"?")
        os.utime(folder / name, (time.time() - age_s, time.time() - age_s))
    write(store, "d")
    assert [path.name for path in files(folder)] == [".y.image.busy", "a.image", "c.image", "d.image", "notes.txt"]
    assert [entry.key for entry in store.entries()] == ["d", "a", "c"]
    assert {entry.image.model for entry in store.entries() if entry.image} == {"m"}
    ImageStore(folder, 40_000).make_room(0)
    assert [entry.key for entry in store.entries()] == ["d", "a"]
    write(ImageStore(folder, 10_000), "e")
    assert not store.has("e"), "larger than all that may be kept"
    store.clear()
    assert [path.name for path in files(folder)] == ["notes.txt"]


def test_processes_share_a_store(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=hammer, args=(folder, seed, queue)) for seed in range(3)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert all(n_hits > 0 for n_hits, _ in found)
    assert not any(dropped for _, dropped in found), "nobody sees a part of an entry"
    assert sum(path.stat().st_size for path in files(folder)) <= 3 * 20_000
    assert not [path for path in files(folder) if path.name.startswith(".")]


def test_a_model_that_nobody_holds_is_freed_at_once(bundle: Bundle, photo: Pixels) -> None:
    counted = Counted(bundle, memory_bytes=10**6)
    assert counted.encodes(photo)
    model = weakref.ref(counted.model)
    gc.disable()
    try:
        del counted
        assert model() is None
    finally:
        gc.enable()


def test_two_threads_that_encode_the_same_image_go_on_with_one(bundle: Bundle, photo: Pixels) -> None:
    counted = Counted(bundle, memory_bytes=10**6)
    barrier = threading.Barrier(2)
    counted.decoder.on_run = lambda: barrier.wait(60)  # both are past the question whether it is known
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(counted.model.encode, (photo, photo))
    assert first is second
    assert counted.ran.count("project") == 2


def test_options_choose_what_is_kept(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEVLM_HOME", str(tmp_path))
    monkeypatch.delenv("EDGEVLM_CACHE_GB", raising=False)
    engine = FakeEngine(TinyDecoder(320))
    default = open_image_cache(bundle, engine, LoadOptions())
    assert (default._memory._limit_bytes, default._store) == (512 * 10**6, None)
    stored = open_image_cache(bundle, engine, LoadOptions(image_cache=True, low_memory=True))
    assert stored._memory._limit_bytes == 0
    assert stored._store is not None
    assert (stored._store.folder, stored._store.limit_bytes) == (tmp_path / "cache" / "images", 2 * 10**9)
    assert default._engine != open_image_cache(bundle, engine, LoadOptions(threads=77))._engine
    with pytest.raises(InvalidOption, match="image_memory_mb"):
        LoadOptions(image_memory_mb=-1)


@pytest.mark.parametrize(("text", "limit"), [("", 2 * 10**9), ("0.5", 5 * 10**8), ("0", None), ("1e-12", None)])
def test_the_size_of_the_store(monkeypatch: pytest.MonkeyPatch, text: str, limit: int | None) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE_GB", text)
    store = default_store()
    assert (None if store is None else store.limit_bytes) == limit


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf", "1e999"])
def test_a_size_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("EDGEVLM_CACHE_GB", text)
    with pytest.raises(InvalidOption, match="EDGEVLM_CACHE_GB must be a number of at least 0, not '"):
        default_store()


@contextmanager
def file_size_limit(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond that; writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def numbers(key: str) -> npt.NDArray[np.float32]:
    """The blocks of an entry of nearly 16 kB."""
    return np.random.default_rng(list(key.encode())).normal(size=(4, 980)).astype(np.float32)


def write(store: ImageStore, key: str) -> None:
    blocks = numbers(key)
    image = StoredImage(
        key=key,
        model="m",
        precision="fp32",
        engine="e",
        width=1,
        height=1,
        tokens=1,
        dim=1,
        positions=1,
        data_bytes=blocks.nbytes,
    )
    store.write(image, list(blocks))


def read(store: ImageStore, key: str) -> npt.NDArray[np.float32] | None:
    blocks = np.zeros((4, 980), np.float32)
    return None if store.read(key, lambda image: list(blocks)) is None else blocks


def hammer(folder: Path, seed: int, queue: multiprocessing.Queue[tuple[int, bool]]) -> None:
    """Read and write more entries than fit, in another order than others do."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("edgevlm_runtime").addHandler(handler)
    logging.getLogger("edgevlm_runtime").setLevel(logging.INFO)
    store, rng = ImageStore(folder, 3 * 20_000), np.random.default_rng(seed)
    n_hits = 0
    for _ in range(300):
        key = "abcdef"[rng.integers(6)]
        found = read(store, key)
        if found is None:
            write(store, key)
        else:
            np.testing.assert_array_equal(found, numbers(key))
            n_hits += 1
    queue.put((n_hits, any("dropped" in line or "can not" in line for line in lines)))
