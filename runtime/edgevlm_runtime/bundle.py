"""A bundle: a folder with manifest.json, graphs and data, every file of it checked by size and SHA-256.

Reads, checks and writes the folder; knows nothing of what the graphs compute.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from edgevlm_runtime.checksums import HashMemory, hash_file, write_atomically
from edgevlm_runtime.errors import BundleError, DamagedBundle, ModelNotFound
from edgevlm_runtime.manifest import SCHEMA_VERSION, FileRecord, ImageSpec, Manifest
from edgevlm_runtime.records import read_record, write_record

MANIFEST = "manifest.json"
# The manifest's own SHA-256, over all its other fields: no other file could vouch for it.
_CHECKSUM = "checksum"
_MAX_MANIFEST_BYTES = 16 << 20
_WAY_OUT = "export or pull the model again"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle. `root` is absolute, with symbolic links resolved."""

    root: Path
    manifest: Manifest

    def path(self, relative: str) -> Path:
        """The absolute path of a file that the manifest lists.

        Raises:
            DamagedBundle: the manifest does not list it, or it leaves the folder.
        """
        if relative not in self.manifest.files:
            raise DamagedBundle(f"{self.root}: the manifest lists no file {relative!r}; {_WAY_OUT}")
        return _inside(self.root, relative)

    @cached_property
    def fingerprint(self) -> str:
        """The manifest's own checksum, which no other bundle has."""
        return _checksum(write_record(self.manifest))

    def check_hashes(self, *, fresh: bool = True) -> None:
        """Compare every file with its SHA-256, reading all of them when `fresh`, else only what may have changed.

        Raises:
            DamagedBundle: a file was altered or can not be read.
        """
        memory = HashMemory(self.root)
        for relative, record in self.manifest.files.items():
            path = self.path(relative)
            try:
                digest = memory.hash(path, fresh=fresh)
            except OSError as error:
                raise _unreadable(path, error) from error
            if digest != record.sha256:
                raise DamagedBundle(f"{path}: its contents were altered (SHA-256 differs); {_WAY_OUT}")


def open_bundle(path: Path, *, check: bool = True) -> Bundle:
    """Read and check a bundle: the manifest, and the presence, size and (when `check`) SHA-256 of every file.

    Raises:
        ModelNotFound: there is no folder at `path`.
        DamagedBundle: the manifest can not be read or is of a newer schema; a file is missing, altered or outside.
    """
    root = _find(path)
    data = _read_manifest(root / MANIFEST)
    where = str(root / MANIFEST)
    checksum = data.pop(_CHECKSUM, None)
    _check_schema(data, where)
    bundle = Bundle(root=root, manifest=read_record(Manifest, data, where))
    _check_files(bundle)
    if checksum != _checksum(data):
        raise DamagedBundle(f"{where}: its contents were altered (checksum differs); {_WAY_OUT}")
    _check_image(bundle.manifest.image, where)
    _check_text(bundle.manifest, where)
    _check_fusion(bundle.manifest, where)
    if check:
        bundle.check_hashes(fresh=False)
    return bundle


def write_manifest(root: Path, manifest: Manifest) -> Manifest:
    """Fill `files` with the size and SHA-256 of all that lies in the folder, and write manifest.json atomically.

    Raises:
        DamagedBundle: the folder holds a link that leaves it.
        OSError: a file can not be read, or the manifest not written.
    """
    root = root.resolve()
    files = {}
    for path in _regular_files(root):
        relative = path.relative_to(root).as_posix()
        files[relative] = FileRecord(bytes=path.stat().st_size, sha256=hash_file(_inside(root, relative)))
    filled = dataclasses.replace(manifest, files=files)
    data = write_record(filled)
    document = {**data, _CHECKSUM: _checksum(data)}
    write_atomically(root / MANIFEST, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return filled


def _find(path: Path) -> Path:
    """The bundle's folder, absolute."""
    try:
        root = path.resolve()
        mode = root.stat().st_mode
    except PermissionError as error:
        raise _unreadable(path, error) from error
    except (OSError, ValueError, RuntimeError) as error:  # not there, a NUL in the name, or a loop of links
        raise ModelNotFound(
            f"{path}: there is no such bundle; give a bundle's folder or the name of a model"
        ) from error
    if not stat.S_ISDIR(mode):
        raise ModelNotFound(f"{path}: a bundle is a folder with a {MANIFEST}, this is a file")
    return root


def _read_manifest(path: Path) -> dict[str, Any]:
    """The JSON object in manifest.json."""
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise DamagedBundle(f"{path}: larger than {_MAX_MANIFEST_BYTES >> 20} MB, so not a manifest; {_WAY_OUT}")
        text = path.read_bytes().decode("utf-8")
        data = json.loads(text, object_pairs_hook=_unique)
    except FileNotFoundError as error:
        raise DamagedBundle(f"{path.parent}: no {MANIFEST}, so not a whole bundle; {_WAY_OUT}") from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except RecursionError as error:
        raise DamagedBundle(f"{path}: nested too deeply; {_WAY_OUT}") from error
    except ValueError as error:  # not UTF-8, not JSON, a field twice, a number of thousands of digits
        raise DamagedBundle(f"{path}: not readable as JSON ({error}); {_WAY_OUT}") from error
    if not isinstance(data, dict):
        raise DamagedBundle(f"{path}: an object is needed, not {type(data).__name__}; {_WAY_OUT}")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON whose fields are all different."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return fields


def _check_schema(data: dict[str, Any], where: str) -> None:
    """Refuse other schemas before their unknown fields are complained about."""
    version = data.get("schema_version")
    if type(version) is not int or version == SCHEMA_VERSION:
        return  # a missing or misshapen version is named by read_record
    if version < SCHEMA_VERSION:
        raise DamagedBundle(
            f"{where}: schema {version} is no longer read (this is schema {SCHEMA_VERSION}); {_WAY_OUT}"
        )
    raise DamagedBundle(
        f"{where}: schema {version} is newer than this edgevlm reads (up to {SCHEMA_VERSION}); "
        f"{_writer(data)} reads it: pip install --upgrade edgevlm"
    )


def _writer(data: dict[str, Any]) -> str:
    """Which edgevlm wrote a bundle, as far as a manifest of an unknown schema says."""
    try:
        version = data["provenance"]["tools"]["edgevlm"]
    except (KeyError, TypeError):
        return "a newer edgevlm"
    short = isinstance(version, str) and version.isascii() and version.isprintable() and len(version) <= 32
    return f"edgevlm {version}" if short else "a newer edgevlm"


def _check_files(bundle: Bundle) -> None:
    """Every file that the manifest names is listed, inside the folder, present, and of the right size."""
    manifest = bundle.manifest
    named = [manifest.tokenizer, manifest.embedding, manifest.golden, manifest.labels]
    for graph in manifest.graphs.values():
        named += [graph.file, *graph.compiled.values()]
    for relative in (*manifest.files, *(name for name in named if name is not None)):
        path = bundle.path(relative)
        try:
            status = path.stat()
        except FileNotFoundError as error:
            raise DamagedBundle(f"{path}: missing from the bundle; {_WAY_OUT}") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        expected = manifest.files[relative].bytes
        if not stat.S_ISREG(status.st_mode):
            raise DamagedBundle(f"{path}: not a regular file; {_WAY_OUT}")
        if status.st_size != expected:
            raise DamagedBundle(f"{path}: {status.st_size} bytes where {expected} are needed; {_WAY_OUT}")


def _check_image(spec: ImageSpec | None, where: str) -> None:
    """Refuse sizes that would divide by zero or fill the memory later."""
    if spec is None:
        return
    tiling = spec.tiling
    sound = 1 <= spec.crop_px <= 4096 and len(spec.mean) == len(spec.std) == 3 and 0.0 not in spec.std
    sound = sound and 1 <= spec.split <= 8 and (spec.split == 1 or tiling is None)
    sound = sound and (spec.frames is None or spec.frames.fps > 0)
    if tiling is not None:
        sound = sound and tiling.patch_px >= 1 and tiling.margin_patches >= 0 and 1 <= tiling.max_crops <= 1024
        sound = sound and spec.crop_px % tiling.patch_px == 0
        sound = sound and spec.crop_px > 2 * tiling.margin_patches * tiling.patch_px
    if spec.center_crop is not None:
        sound = sound and tiling is None and spec.crop_px <= spec.center_crop.shortest_px <= 8192
    if not sound:
        raise DamagedBundle(f"{where}: image: its sizes do not fit each other ({spec}); {_WAY_OUT}")


def _check_text(manifest: Manifest, where: str) -> None:
    """Refuse a context without room for words, and a template without a place for them."""
    text, match = manifest.text, manifest.match
    if text is not None and not 2 <= text.context <= 1 << 16:
        raise DamagedBundle(f"{where}: text: a context of {text.context} tokens can not be used; {_WAY_OUT}")
    if match is not None and "{}" not in match.template:
        raise DamagedBundle(f"{where}: match: template {match.template!r} has no {{}}; {_WAY_OUT}")


def _check_fusion(manifest: Manifest, where: str) -> None:
    """Refuse sizes of fusion that no cache can have, and fusion without its graph."""
    fusion = manifest.fusion
    if fusion is None:
        return
    sizes = (fusion.n_compressed, fusion.n_layers, fusion.n_kv_heads, fusion.head_dim)
    if min(sizes) < 1 or fusion.max_context <= fusion.n_compressed or "prefuse" not in manifest.graphs:
        raise DamagedBundle(f"{where}: fusion: it does not fit the graphs ({fusion}); {_WAY_OUT}")


def _inside(root: Path, relative: str) -> Path:
    """The path of a file in the folder; links are followed, and refused when they lead out."""
    pure = PurePosixPath(relative)
    # Backslashes and colons are separators and drives on Windows: a bundle must mean the same everywhere.
    plain = relative != "" and not pure.is_absolute() and ".." not in pure.parts
    if not plain or any(character in relative for character in "\\:\0") or relative == MANIFEST:
        raise DamagedBundle(f"{root}: file {relative!r} is not a plain path inside the bundle; {_WAY_OUT}")
    try:
        path = (root / pure).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise DamagedBundle(f"{root}: file {relative!r} can not be resolved; {_WAY_OUT}") from error
    if not path.is_relative_to(root):
        raise DamagedBundle(f"{root}: file {relative!r} leads out of the bundle, to {path}; {_WAY_OUT}")
    return path


def _regular_files(root: Path) -> Iterator[Path]:
    """All files of a folder but the manifest, in a stable order."""
    for path in sorted(root.rglob("*")):
        if not path.is_dir() and path != root / MANIFEST:
            yield path


def _checksum(data: dict[str, Any]) -> str:
    """The SHA-256 of a manifest's fields, whatever their order and spacing."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _unreadable(path: Path, error: OSError) -> BundleError:
    return DamagedBundle(f"{path}: can not be read ({error.strerror or error})")
