"""Step 1: a folder, a file or a repository of the Hugging Face hub to named tensors, none of them read yet.

Files are opened anew for each tensor and only mapped, so that a tensor's pages leave memory with the tensor.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgevlm_runtime.errors import CheckpointError

_STATE_KEYS = ("state_dict", "model")  # where training scripts put the tensors in a .pt file
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth", "*.pth.tar", "*.bin")
_READ_BYTES = 1 << 22
# Settings that training scripts save beside the tensors: plain data, of classes that torch refuses to make unasked.
_SETTINGS = (argparse.Namespace, (OrderedDict, "yacs.config.CfgNode"))


@dataclass(frozen=True, kw_only=True)
class LazyWeight:
    """A tensor that is read when asked for. `origin` is its key in the checkpoint, for messages."""

    origin: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    def transposed(self) -> LazyWeight:
        """The transpose of a matrix."""
        return LazyWeight(origin=self.origin, shape=self.shape[::-1], read=lambda: self.read().T)


def joined(*parts: LazyWeight) -> LazyWeight:
    """Tensors one after the other along their first axis.

    Raises:
        CheckpointError: their other axes differ.
    """
    first = parts[0]
    for part in parts:
        if part.shape[1:] != first.shape[1:]:
            raise CheckpointError(
                f"tensor {part.origin}: has shape {part.shape}, which does not fit {first.origin} of {first.shape}"
            )
    shape = (sum(part.shape[0] for part in parts), *first.shape[1:])
    return LazyWeight(origin=first.origin, shape=shape, read=lambda: torch.cat([part.read() for part in parts]))


def zeros(*shape: int) -> LazyWeight:
    """A tensor that a checkpoint leaves out because it is zero."""
    return LazyWeight(origin="zeros", shape=shape, read=lambda: torch.zeros(shape))


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """A repository of the hub at one revision; `files` are patterns of what to download."""

    repo: str
    revision: str
    files: tuple[str, ...]


class Checkpoint(Mapping[str, LazyWeight]):
    """The tensors of a checkpoint by their own keys, and the small files beside them."""

    def __init__(self, path: Path, tensors: dict[str, LazyWeight]) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._tensors = tensors

    def __getitem__(self, key: str) -> LazyWeight:
        return self._tensors[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def read_config(self) -> dict[str, Any]:
        """config.json beside the tensors, {} where there is none or it is empty.

        Raises:
            CheckpointError: it is not a JSON object.
        """
        path = self.folder / "config.json"
        if not path.is_file() or not path.read_bytes().strip():
            return {}
        return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        CheckpointError: it can not be read, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can not be read as JSON ({_one_line(error)}); download it again") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(data).__name__} where an object was expected")
    return data


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder in the published layout, or one file of tensors.

    Raises:
        CheckpointError: nothing there, a shard missing, or a file damaged.
    """
    tensors: dict[str, LazyWeight] = {}
    for file in _find_files(path):
        found = _open_safetensors(file) if file.suffix == ".safetensors" else _open_pickle(file)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise CheckpointError(f"{file}: tensor {twice[0]} is in another file of {path} too; name one file instead")
        tensors |= found
    return Checkpoint(path, tensors)


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder or file; give the folder that holds the checkpoint")
    for index in sorted(path.glob("*.index.json")):
        return _find_shards(index)
    for pattern in _PATTERNS:
        if files := sorted(path.glob(pattern)):
            return files
    raise CheckpointError(f"{path}: no tensors in this folder; expected one of {', '.join(_PATTERNS)}")


def _find_shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    shards = [index.parent / name for name in sorted(set(map(str, weight_map.values())))]
    for shard in shards:
        if shard.parent != index.parent or not shard.is_file():
            raise CheckpointError(f"{shard}: named in {index.name} but not there; download it again")
    return shards


def _open_safetensors(file: Path) -> dict[str, LazyWeight]:
    def reader(key: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            try:
                with safe_open(file, framework="pt") as opened:
                    tensor: Tensor = opened.get_tensor(key)
            except (SafetensorError, OSError) as error:
                raise _damaged(file, error) from error
            return tensor

        return read

    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(file, error) from error
    return {key: LazyWeight(origin=key, shape=shape, read=reader(key)) for key, shape in shapes.items()}


def _open_pickle(file: Path) -> dict[str, LazyWeight]:
    tensors = _load_pickle(file)
    # Files from before torch 1.6 are no archives and can not be mapped: their tensors are held instead.
    held = {} if zipfile.is_zipfile(file) else tensors

    def reader(key: str) -> Callable[[], Tensor]:
        return lambda: (held or _load_pickle(file))[key]

    return {key: LazyWeight(origin=key, shape=tuple(tensor.shape), read=reader(key)) for key, tensor in tensors.items()}


def _load_pickle(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(list(_SETTINGS)):
            data = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise _damaged(file, error) from error
    for key in _STATE_KEYS:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict):
        raise CheckpointError(f"{file}: holds a {type(data).__name__} where named tensors were expected")
    return {str(key): value for key, value in data.items() if isinstance(value, Tensor)}


def _damaged(file: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{file}: damaged or not a checkpoint ({_one_line(error)}); download it again")


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")[:200] or type(error).__name__


def download(source: HubSource) -> Path:
    """Files of a repository, from the hub or its local cache; an interrupted download resumes.

    Raises:
        CheckpointError: offline and not in the cache, no such repository or revision, no space, a wrong checksum.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    where = f"{source.repo}@{source.revision}"
    try:
        folder = Path(snapshot_download(source.repo, revision=source.revision, allow_patterns=list(source.files)))
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{where}: can not reach the hub and it is not in the local cache; connect, or give a folder with --from"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{where}: can not be downloaded ({_one_line(error)})") from error
    for file in sorted(folder.rglob("*")):
        _check_sum(file)
    return folder


def _check_sum(file: Path) -> None:
    """The hub's cache names a large file's blob by its sha256: hold the bytes against it."""
    blob = file.resolve()
    if not blob.is_file() or not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    digest = hashlib.sha256()
    with blob.open("rb") as opened:
        while block := opened.read(_READ_BYTES):
            digest.update(block)
    if digest.hexdigest() != blob.name:
        raise CheckpointError(
            f"{file}: sha256 is {digest.hexdigest()}, not the hub's; delete {blob} and download again"
        )
