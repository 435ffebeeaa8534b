"""Searching a folder: what is found and ranked, and a cache that is right or not used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from edgevlm_runtime import search
from edgevlm_runtime.errors import InvalidOption
from edgevlm_runtime.image import Pixels
from edgevlm_runtime.model import Model, load
from edgevlm_runtime.options import LoadOptions
from edgevlm_runtime.search import FolderIndex, Indexed, find_images
from tests.runtime.image_bundle import DIM, MATCH, write_dual_encoder

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
not_as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    bundle = write_dual_encoder(tmp_path_factory.mktemp("dual"), name="timm/tiny:1")
    return load(bundle, LoadOptions(engine="onnxruntime", threads=1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them a folder deeper, and what is no image of the user's."""
    root = tmp_path / "photos"
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name, color in {
        "r.png": "red",
        "deep/er/g.JPG": "green",
        "deep/b.webp": "blue",
        ".hidden/h.png": "red",
    }.items():
        draw(root / name, color)
    draw(root / ".dot.png", "red")
    (root / "notes.txt").write_text("no image")
    return root


def draw(path: Path, color: str) -> None:
    Image.new("RGB", (12, 9), COLORS[color]).save(path)


class Counter:
    """Makes an embedding of the mean color, and counts how often."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.fail_at: int | None = None

    def __call__(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        if self.fail_at == len(self.seen):
            raise KeyboardInterrupt
        mean = pixels.mean(axis=(0, 1))
        self.seen.append(tuple(mean.round().astype(int).tolist()))
        return np.asarray(mean, np.float32)


def refresh(folder: Path, embed: Counter | None = None, fingerprint: str = "f" * 64, dim: int = 3) -> Indexed:
    return FolderIndex(folder, name="tiny", fingerprint=fingerprint, dim=dim).refresh(embed or Counter())


def only_cache(folder: Path) -> Path:
    (cache,) = (folder / ".edgevlm").iterdir()
    return cache


def test_a_color_is_found_by_its_name(model: Model, folder: Path) -> None:
    done: list[int] = []
    for color, name in {"red": "r.png", "green": "deep/er/g.JPG", "blue": "deep/b.webp"}.items():
        result = model.search(folder, color, done=lambda: done.append(1))
        assert result.hits[0].path == str(folder / name)
        assert (result.n_images, result.skipped) == (3, ())
        scores = [hit.score for hit in result.hits]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        assert result.hits[0].probability is None
    assert len(done) == 9
    assert len(model.search(folder, "red", top_k=1).hits) == 1
    cosine = float(model.embed(folder / "r.png") @ model.embed_texts(["red"])[0])
    assert model.search(folder, "red").hits[0].score == pytest.approx(cosine, rel=1e-5)
    fingerprint = model._bundle.fingerprint
    assert only_cache(folder).name == f"timm_tiny_1-{fingerprint[:12]}.npz"


def test_a_pair_has_a_probability_where_the_model_judges_pairs(tmp_path: Path, folder: Path) -> None:
    model = load(write_dual_encoder(tmp_path / "dual", match=replace(MATCH, activation="sigmoid")))
    for hit in model.search(folder, "red").hits:
        logit = MATCH.scale * hit.score + MATCH.bias
        assert hit.probability == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-4)


def test_only_new_and_changed_files_are_embedded(folder: Path) -> None:
    embed = Counter()
    first = refresh(folder, embed)
    assert len(embed.seen) == 3 and first.embeddings.shape == (3, 3)
    assert first.paths == tuple(sorted(first.paths))
    written = only_cache(folder).stat().st_mtime_ns
    again = Counter()
    np.testing.assert_array_equal(refresh(folder, again).embeddings, first.embeddings)
    assert again.seen == [] and only_cache(folder).stat().st_mtime_ns == written

    status = (folder / "r.png").stat()
    draw(folder / "r.png", "blue")  # same name, and the same time
    os.utime(folder / "r.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    shutil.copy(folder / "deep" / "er" / "g.JPG", folder / "copy.jpg")
    (folder / "deep" / "b.webp").rename(folder / "renamed.webp")
    changed = Counter()
    indexed = refresh(folder, changed)
    assert changed.seen == [(0, 0, 255)]
    assert [os.path.basename(path) for path in indexed.paths] == ["copy.jpg", "g.JPG", "r.png", "renamed.webp"]
    np.testing.assert_array_equal(indexed.embeddings[0], indexed.embeddings[1])
    assert only_cache(folder).stat().st_mtime_ns > written


def test_deleted_files_are_dropped(folder: Path) -> None:
    refresh(folder)
    (folder / "r.png").unlink()
    assert len(refresh(folder).paths) == 2
    with np.load(only_cache(folder)) as arrays:
        assert arrays["embeddings"].shape == (2, 3) and len(arrays["digests"]) == 2


def test_another_model_has_its_own_cache(folder: Path) -> None:
    refresh(folder)
    other = Counter()
    refresh(folder, other, fingerprint="0" * 64)
    assert len(other.seen) == 3
    assert len(list((folder / ".edgevlm").iterdir())) == 2


def damage_values(path: Path) -> None:
    with np.load(path) as arrays:
        values = dict(arrays)
    values["embeddings"] = values["embeddings"] + 1
    np.savez(path, **values)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b"\x93NUMPY" + bytes(200)),
        lambda path: np.savez(path, digests=["a"]),
        lambda path: np.savez(path, digests=np.array([{}], object), embeddings=np.zeros(1), checksum="a"),
        damage_values,
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
def test_a_damaged_cache_is_made_again(folder: Path, damage: Callable[[Path], object]) -> None:
    wanted = refresh(folder)
    damage(only_cache(folder))
    embed = Counter()
    np.testing.assert_array_equal(refresh(folder, embed).embeddings, wanted.embeddings)
    assert len(embed.seen) == 3
    if only_cache(folder).is_file():
        assert refresh(folder, again := Counter()).paths and again.seen == []


def test_a_cache_of_another_width_is_made_again(folder: Path) -> None:
    refresh(folder)
    index = FolderIndex(folder, name="tiny", fingerprint="f" * 64, dim=DIM)
    assert index.refresh(lambda pixels: np.ones(DIM, np.float32)).embeddings.shape == (3, DIM)


def test_what_was_made_before_an_interruption_is_kept(folder: Path) -> None:
    draw(folder / "a.png", "green")
    embed = Counter()
    embed.fail_at = 2
    with pytest.raises(KeyboardInterrupt):
        refresh(folder, embed)
    rest = Counter()
    refresh(folder, rest)
    assert len(rest.seen) == 2


def test_what_can_not_be_read_is_skipped_counted_and_named(model: Model, folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "r.png").read_bytes()[:40])
    (folder / "empty.jpg").touch()
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    os.mkfifo(folder / "pipe.png")
    result = model.search(folder, "red")
    assert result.n_images == 3 and result.hits[0].path == str(folder / "r.png")
    assert [Path(path).name for path, _ in result.skipped] == ["broken.png", "empty.jpg", "gone.png", "pipe.png"]
    for path, reason in result.skipped:
        assert path not in reason and reason and "\n" not in reason


@not_as_root
def test_a_folder_that_can_not_be_opened_is_named(folder: Path) -> None:
    (folder / "deep").chmod(0)
    try:
        indexed = refresh(folder)
    finally:
        (folder / "deep").chmod(0o755)
    assert [path for path, _ in indexed.skipped] == [str(folder / "deep")] and len(indexed.paths) == 1


@not_as_root
def test_a_read_only_folder_has_no_cache(folder: Path) -> None:
    folder.chmod(0o555)
    try:
        assert len(refresh(folder).paths) == 3
        assert not (folder / ".edgevlm").exists()
    finally:
        folder.chmod(0o755)


def test_a_cache_that_can_not_be_written_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / ".edgevlm").write_text("a file where the cache's folder would be")
    assert len(refresh(folder).paths) == 3
    (folder / ".edgevlm").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(search, "write_atomically", full)
    assert len(refresh(folder).paths) == 3


def test_folders_without_images(tmp_path: Path, model: Model) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.png").touch()
    for path, message in (("empty", "no images in it"), ("nowhere", "not a folder"), ("a.png", "not a folder")):
        for ask in (
            lambda path=path: find_images(tmp_path / path),
            lambda path=path: model.search(tmp_path / path, "a"),
        ):
            with pytest.raises(InvalidOption, match=message):
                ask()
    with pytest.raises(InvalidOption, match="blank"):
        model.search(tmp_path, " ")
