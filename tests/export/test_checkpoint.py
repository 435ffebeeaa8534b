"""Every way that tensors come in gives the same weights, and damaged files are one line."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from torch import Tensor

from edgevlm_export.checkpoint import HubSource, LazyWeight, download, open_checkpoint
from edgevlm_export.weights import match_weights
from edgevlm_runtime.errors import CheckpointError
from tests.export.conftest import read_recipe
from tests.export.specimens import LAYOUTS, write_layout, write_published


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_layout_gives_the_same_weights(
    layout: str, tiny: Path, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = write_layout(LAYOUTS[layout], tmp_path / layout, tensors, beside=tiny)
    weights = read_recipe(folder).weights
    assert set(weights) == set(tensors)
    for name, tensor in tensors.items():
        assert weights.shape(name) == tuple(tensor.shape)
        assert torch.equal(weights[name], tensor.float())


def test_a_single_file_is_a_checkpoint(tiny: Path, tensors: dict[str, Tensor]) -> None:
    assert set(open_checkpoint(tiny / "model.safetensors")) == {f"model.{name}" for name in tensors}


def test_tensors_are_read_only_when_asked_for(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    folder = write_layout(write_published, tmp_path / "gone", tensors, beside=tiny)
    weights = read_recipe(folder).weights
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        weights["text.wte"]


def _message(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cut", [0, 4, 100, -1000])
def test_a_truncated_file_is_named(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor], cut: int) -> None:
    folder = write_layout(write_published, tmp_path / "cut", tensors, beside=tiny)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    assert str(file) in _message(folder)


@pytest.mark.parametrize("layout", ["pickle", "old_pickle"])
def test_a_truncated_pickle_is_named(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor], layout: str) -> None:
    folder = write_layout(LAYOUTS[layout], tmp_path / "cut", tensors, beside=tiny)
    (file,) = (path for path in folder.iterdir() if path.suffix in (".bin", ".pth"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert str(file) in _message(folder)


class _Malice:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("owned"),)


def test_a_pickle_with_code_is_not_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"text.wte": _Malice()}, tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in _message(tmp_path / "model.pt")
    assert not (tmp_path / "owned").exists()


def test_a_missing_shard_is_named(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    folder = write_layout(LAYOUTS["sharded"], tmp_path / "shards", tensors, beside=tiny)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors" in _message(folder)


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"text.wte": "../elsewhere.safetensors"}}))
    assert "elsewhere" in _message(tmp_path)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    assert "*.safetensors" in _message(tmp_path)
    assert "no such folder" in _message(tmp_path / "nowhere")


def test_missing_extra_and_misshapen_tensors_are_named(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("region.")}
    message = _message(write_layout(write_published, tmp_path / "fewer", fewer, beside=tiny))
    n_missing = len(tensors) - len(fewer)
    assert f"{n_missing} missing" in message and "region.coord_features" in message and "..." in message

    more = {**tensors, "text.blocks.0.adapter": torch.zeros(2)}
    message = _message(write_layout(write_published, tmp_path / "more", more, beside=tiny))
    assert "1 unknown (model.text.blocks.0.adapter)" in message

    wrong = {**tensors, "text.lm_head.weight": torch.zeros(512, 63)}
    message = _message(write_layout(write_published, tmp_path / "wrong", wrong, beside=tiny))
    assert "model.text.lm_head.weight has shape (512, 63), expected (512, 64)" in message


def test_a_tensor_of_integers_is_refused() -> None:
    weight = LazyWeight(origin="text.wte", shape=(2,), read=lambda: torch.zeros(2, dtype=torch.int64))
    weights = match_weights({"text.wte": (2,)}, {"text.wte": weight}, "here")
    with pytest.raises(CheckpointError, match=r"text\.wte.*int64"):
        weights["text.wte"]


def test_four_bits_are_dequantized(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """Against a loop over bytes: high nibbles are the first half of the groups, low nibbles the second."""
    generator = torch.Generator().manual_seed(3)
    packed: dict[str, Tensor] = {}
    expected: dict[str, list[float]] = {}
    for name, tensor in tensors.items():
        matrix = name.endswith(".weight") and tensor.ndim == 2 and not name.startswith(("vision.", "text.lm_head"))
        if not matrix:
            packed[name] = tensor
            continue
        n_groups = tensor.numel() // 128
        values = torch.randint(256, (n_groups // 2, 128), generator=generator, dtype=torch.uint8)
        scale, zero = torch.rand(n_groups, 1, generator=generator), 15 * torch.rand(n_groups, 1, generator=generator)
        packed |= {f"{name}.packed": values, f"{name}.scale": scale, f"{name}.zero_point": zero}
        expected[name] = _unpack_slowly(values, scale, zero)
    assert len(expected) == 8 + 6
    folder = write_layout(write_published, tmp_path / "packed", packed, beside=tiny)
    weights = read_recipe(folder).weights
    for name, unpacked in expected.items():
        assert weights.shape(name) == tuple(tensors[name].shape)
        assert weights[name].flatten().tolist() == pytest.approx(unpacked, rel=1e-6, abs=1e-6)


def _unpack_slowly(packed: Tensor, scale: Tensor, zero: Tensor) -> list[float]:
    rows = packed.tolist()
    groups = [[byte // 16 for byte in row] for row in rows] + [[byte % 16 for byte in row] for row in rows]
    return [(q - zero[g].item()) * scale[g].item() for g, group in enumerate(groups) for q in group]


def test_an_incomplete_four_bit_matrix_is_named(tiny: Path, tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    name = "text.blocks.0.mlp.fc1.weight"
    packed = {key: tensor for key, tensor in tensors.items() if key != name}
    packed[f"{name}.packed"] = torch.zeros(math.prod(tensors[name].shape) // 256, 128, dtype=torch.uint8)
    assert name in _message(write_layout(write_published, tmp_path / "packed", packed, beside=tiny))


def test_offline_without_a_cache_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    local = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", local)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"vikhyatk/moondream2@2025-06-21: .*--from"):
        download(HubSource(repo="vikhyatk/moondream2", revision="2025-06-21", files=("model.safetensors",)))


def _fake_cache(root: Path, content: bytes, sha256: str) -> HubSource:
    """A repository in the hub's local cache, one file whose blob is named by its checksum."""
    repo = root / "models--some--model"
    commit = "a" * 40
    for folder in (repo / "blobs", repo / "refs", repo / "snapshots" / commit):
        folder.mkdir(parents=True)
    (repo / "refs" / "v1").write_text(commit)
    (repo / "blobs" / sha256).write_bytes(content)
    (repo / "snapshots" / commit / "model.safetensors").symlink_to(repo / "blobs" / sha256)
    return HubSource(repo="some/model", revision="v1", files=("model.safetensors",))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_download_is_held_against_its_checksum(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damaged: bool
) -> None:
    content = b"tensors"
    source = _fake_cache(tmp_path, content + b"!" * damaged, hashlib.sha256(content).hexdigest())
    local = partial(huggingface_hub.snapshot_download, cache_dir=tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", local)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    if damaged:
        with pytest.raises(CheckpointError, match="sha256"):
            download(source)
    else:
        assert (download(source) / "model.safetensors").read_bytes() == content
