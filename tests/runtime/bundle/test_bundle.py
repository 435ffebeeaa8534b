"""Bundles: what is written is read, and every kind of damage is found with one line and its own error."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from edgevlm_runtime import bundle as bundle_module
from edgevlm_runtime import checksums
from edgevlm_runtime.bundle import open_bundle, write_manifest
from edgevlm_runtime.checksums import hash_file, write_atomically
from edgevlm_runtime.errors import DamagedBundle, ModelNotFound
from edgevlm_runtime.manifest import FileRecord
from tests.runtime.bundle.manifests import MANIFEST, edit, refused


def test_written_is_read(root: Path) -> None:
    opened = open_bundle(root)
    assert dataclasses.replace(opened.manifest, files={}) == MANIFEST
    assert set(opened.manifest.files) == {"vision.onnx", "vision.onnx.data", "text/tokenizer.json"}
    # The digest of b"{}", as sha256sum prints it.
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert opened.manifest.files["text/tokenizer.json"] == FileRecord(bytes=2, sha256=digest)
    assert opened.path("text/tokenizer.json") == root / "text" / "tokenizer.json"
    assert sorted(path.name for path in root.iterdir()) == ["manifest.json", "text", "vision.onnx", "vision.onnx.data"]


def test_writing_again_gives_the_same_bytes(root: Path) -> None:
    first = (root / "manifest.json").read_bytes()
    write_manifest(root, open_bundle(root).manifest)
    assert (root / "manifest.json").read_bytes() == first


def test_opened_through_a_link_or_a_relative_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = root.with_name("link")
    link.symlink_to(root)
    assert open_bundle(link).root == root
    monkeypatch.chdir(root.parent)
    assert open_bundle(Path("bundle")).root == root


def test_missing_bundle(root: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path / "a\0b", root / "vision.onnx" / "x", root / "vision.onnx"):
        assert path.name in refused(path, ModelNotFound)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", ModelNotFound)


def test_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no manifest.json" in refused(tmp_path / "empty")


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"\xff\xfe{\0}\0",
        b'{"a": "\xff"}',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"schema_version": 1, "schema_version": 1}',
        b'{"schema_version": ' + b"9" * 5000 + b"}",
        b'{"schema_version": NaN}',
        b"\0" * 100,
        b"{}",
    ],
    ids=range(14),
)
def test_manifest_that_can_not_be_read(root: Path, contents: bytes) -> None:
    (root / "manifest.json").write_bytes(contents)
    message = refused(root)
    assert str(root) in message and len(message) < 1000


def test_field_given_twice(root: Path) -> None:
    """JSON would take the last one; a signed manifest has each once."""
    text = (root / "manifest.json").read_text()
    (root / "manifest.json").write_text(text.replace('"name"', '"name": "other", "name"', 1))
    assert "field 'name' occurs twice" in refused(root)


def test_manifest_that_is_huge_or_a_folder(root: Path) -> None:
    with (root / "manifest.json").open("wb") as file:
        file.truncate(17 << 20)
    assert "larger than 16 MB" in refused(root)
    (root / "manifest.json").unlink()
    (root / "manifest.json").mkdir()
    refused(root)


def test_unknown_field(root: Path) -> None:
    edit(root, lambda data: data["image"].update(crop_pixels=3))
    message = refused(root)
    assert "manifest.json: image: unknown field 'crop_pixels', the nearest known one is 'crop_px'" in message


def test_other_schemas(root: Path) -> None:
    def newer(data: dict[str, Any]) -> None:
        data["schema_version"] = 2
        data["something_new"] = True
        data["provenance"]["tools"]["edgevlm"] = "3.1.4"

    edit(root, newer)
    message = refused(root)
    assert "schema 2 is newer" in message and "edgevlm 3.1.4 reads it" in message
    edit(root, lambda data: data["provenance"].update(tools="?"))
    assert "a newer edgevlm reads it" in refused(root)
    edit(root, lambda data: data.update(schema_version=0))
    assert "schema 0 is no longer read" in refused(root)
    edit(root, lambda data: (data.update(schema_version="1"), data.pop("something_new")))
    assert "schema_version: an integer is needed" in refused(root)


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "a/../../secret", "text\\x", "C:secret", "", "a\0b", "..", "\ud800", "manifest.json"],
)
def test_paths_that_leave_the_folder(root: Path, name: str) -> None:
    (root.parent / "secret").write_text("secret")
    record = {"bytes": 6, "sha256": hash_file(root.parent / "secret")}
    edit(root, lambda data: data["files"].update({name: record}))
    refused(root)
    refused(root, check=False)


def test_links_that_leave_the_folder(root: Path) -> None:
    data = (root / "vision.onnx.data").read_bytes()
    outside = root.parent / "outside"
    outside.write_bytes(data)
    (root / "vision.onnx.data").unlink()
    (root / "vision.onnx.data").symlink_to(outside)
    assert "leads out of the bundle" in refused(root)
    with pytest.raises(DamagedBundle, match="leads out"):
        write_manifest(root, MANIFEST)
    (root / "kept").write_bytes(data)
    (root / "vision.onnx.data").unlink()
    (root / "vision.onnx.data").symlink_to("kept")
    open_bundle(root)
    (root / "vision.onnx.data").unlink()
    (root / "vision.onnx.data").symlink_to("vision.onnx.data")
    refused(root)


def test_folder_linked_out(root: Path) -> None:
    (root / "text").rename(root.parent / "elsewhere")
    (root / "text").symlink_to(root.parent / "elsewhere")
    assert "leads out of the bundle" in refused(root)


@pytest.mark.parametrize("name", ["vision.onnx", "vision.onnx.data", "text/tokenizer.json"])
def test_missing_shortened_and_replaced_files(root: Path, name: str) -> None:
    path = root / name
    contents = path.read_bytes()
    path.write_bytes(contents[:-1])
    message = refused(root, check=False)
    assert name in message and f"{len(contents) - 1} bytes where {len(contents)} are needed" in message
    path.unlink()
    assert "missing" in refused(root, check=False)
    path.mkdir()
    assert "not a regular file" in refused(root, check=False)


def test_file_that_the_manifest_names_but_does_not_list(root: Path) -> None:
    (root / "golden.npz").write_bytes(b"x")
    edit(root, lambda data: data.update(golden="golden.npz"))
    assert "lists no file 'golden.npz'" in refused(root)
    with pytest.raises(DamagedBundle, match="lists no file"):
        bundle_module.Bundle(root=root, manifest=MANIFEST).path("../secret")


@pytest.mark.parametrize("name", ["vision.onnx", "vision.onnx.data", "text/tokenizer.json", "manifest.json"])
def test_a_flipped_bit_anywhere_is_found(root: Path, name: str) -> None:
    open_bundle(root)
    path = root / name
    contents = path.read_bytes()
    rng = random.Random(0)
    bits = rng.sample(range(8 * len(contents)), min(200 if name == "manifest.json" else 40, 8 * len(contents)))
    for bit in bits:
        damaged = bytearray(contents)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        # A flip may turn one blank into another, or spell the same value: then nothing was lost.
        if name != "manifest.json" or _means(damaged) != _means(contents):
            refused(root)
    path.write_bytes(contents)
    open_bundle(root)


def _means(contents: bytes | bytearray) -> object:
    try:
        return json.loads(contents, object_pairs_hook=lambda pairs: pairs)
    except (ValueError, RecursionError):
        return None


def test_manifest_without_or_with_a_wrong_checksum(root: Path) -> None:
    edit(root, lambda data: data.update(description="altered"), sign=False)
    assert "altered" in refused(root)
    data = json.loads((root / "manifest.json").read_text())
    del data["checksum"]
    (root / "manifest.json").write_text(json.dumps(data))
    assert "altered" in refused(root)


def test_compiled_graphs_are_listed_and_there(root: Path) -> None:
    (root / "vision.xml").write_bytes(b"<net/>")
    graph = dataclasses.replace(MANIFEST.graphs["vision"], compiled={"openvino": "vision.xml"})
    write_manifest(root, dataclasses.replace(MANIFEST, graphs={"vision": graph}))
    assert open_bundle(root).manifest.graphs["vision"].compiled == {"openvino": "vision.xml"}
    edit(root, lambda data: data["graphs"]["vision"]["compiled"].update(qnn="vision.qnn.onnx"))
    assert "lists no file 'vision.qnn.onnx'" in refused(root)
    edit(root, lambda data: data["graphs"]["vision"]["compiled"].update(qnn="../outside"))
    assert "../outside" in refused(root)
    edit(root, lambda data: data["graphs"]["vision"]["compiled"].pop("qnn"))
    (root / "vision.xml").unlink()
    assert "vision.xml: missing" in refused(root)


def test_the_fingerprint_tells_bundles_apart(root: Path) -> None:
    first = open_bundle(root).fingerprint
    assert first == open_bundle(root).fingerprint == json.loads((root / "manifest.json").read_text())["checksum"]
    write_manifest(root, dataclasses.replace(MANIFEST, name="other"))
    assert open_bundle(root).fingerprint != first


def test_unreadable_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checksums, "hash_file", deny)  # root may read everything
    assert "Permission denied" in refused(root)


def test_large_files_are_hashed_once(root: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(checksums, "hash_file", count)
    monkeypatch.setattr(checksums, "_REMEMBERED_BYTES", 1000)
    path = root / "vision.onnx.data"
    open_bundle(root)
    open_bundle(root)
    assert hashed.count(path.name) == 2  # just written: the clock can not tell yet
    monkeypatch.setattr(checksums, "_SETTLED_NS", 0)
    time.sleep(0.02)
    open_bundle(root)
    hashed.clear()
    bundle = open_bundle(root)
    assert sorted(hashed) == ["tokenizer.json", "vision.onnx"]
    bundle.check_hashes()
    assert hashed.count(path.name) == 1
    for memory in (home / "hashed").iterdir():
        memory.write_text("{ not json")
    hashed.clear()
    open_bundle(root)
    assert hashed.count(path.name) == 1


def test_remembered_file_that_changes_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_REMEMBERED_BYTES", 1000)
    monkeypatch.setattr(checksums, "_SETTLED_NS", 0)
    time.sleep(0.02)
    open_bundle(root)
    path = root / "vision.onnx.data"
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"\xff")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "altered" in refused(root)


def test_memory_that_can_not_be_kept(root: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_REMEMBERED_BYTES", 1)
    monkeypatch.setattr(checksums, "_SETTLED_NS", 0)
    home.write_text("a file where the folder should be")
    time.sleep(0.02)
    open_bundle(root)


def test_writing_leaves_the_old_file_when_it_fails(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(root.iterdir())
    contents = (root / "manifest.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_manifest(root, dataclasses.replace(MANIFEST, description="new"))
    assert sorted(root.iterdir()) == before
    assert (root / "manifest.json").read_bytes() == contents


def test_write_atomically_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "one")
    write_atomically(path, "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    assert list(tmp_path.iterdir()) == [path]
