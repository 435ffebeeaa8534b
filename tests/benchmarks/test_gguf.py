"""GGUF files, read back with a reader that follows the format's description, value by value."""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.peers.gguf_file import F16, F32, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, Tensor, Value, write_gguf
from benchmarks.peers.random_gguf import QUANTIZATIONS, mixed_tensors, write_text, write_vision
from edgevlm_export.families.moondream2.config import SIZE_2B
from edgevlm_export.families.moondream2.random_weights import TINY
from edgevlm_export.modules.moondream2 import TextConfig

_SCALARS = {4: "<I", 5: "<i", 6: "<f", 7: "<?"}
_SMALL = TextConfig(dim=256, ff_dim=512, n_layers=8, n_heads=4, n_kv_heads=4, vocab_size=300)


class Reader:
    """The header of a file, and where its tensors are."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self._at = 0
        assert self._take(4) == b"GGUF"
        version, n_tensors, n_metadata = (self._number("<I"), self._number("<Q"), self._number("<Q"))
        assert version == 3
        self.metadata = {self._string(): self._value(self._number("<I")) for _ in range(n_metadata)}
        self.tensors = {}
        for _ in range(n_tensors):
            name, n_axes = self._string(), self._number("<I")
            axes = tuple(self._number("<Q") for _ in range(n_axes))
            self.tensors[name] = (axes, self._number("<I"), self._number("<Q"))
        self.start = self._at + -self._at % 32

    def _take(self, n_bytes: int) -> bytes:
        self._at += n_bytes
        return self.data[self._at - n_bytes : self._at]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _string(self) -> str:
        return self._take(self._number("<Q")).decode()

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._string()
        if kind == 9:
            item, count = self._number("<I"), self._number("<Q")
            return [self._value(item) for _ in range(count)]
        return self._number(_SCALARS[kind])


def test_metadata_and_places(tmp_path: Path) -> None:
    metadata: dict[str, Value] = {"a": 7, "b": 0.5, "c": True, "d": "text", "e": [1, -2], "f": [0.25], "g": ["x", "yz"]}
    tensors = [
        Tensor(name="odd", shape=(3,), format=F32, std=1.0),
        Tensor(name="matrix", shape=(5, 64), format=Q8_0, std=1.0),
    ]
    write_gguf(tmp_path / "file.gguf", metadata, tensors)
    read = Reader(tmp_path / "file.gguf")
    assert read.metadata == metadata
    assert read.tensors == {"odd": ((3,), 0, 0), "matrix": ((64, 5), 8, 32)}
    assert len(read.data) == read.start + 32 + 5 * 2 * 34 + -(5 * 2 * 34) % 32
    assert [file.name for file in tmp_path.iterdir()] == ["file.gguf"]


def test_float_tensors_have_their_mean_and_width(tmp_path: Path) -> None:
    for form, dtype in ((F32, "<f4"), (F16, "<f2")):
        write_gguf(tmp_path / "file.gguf", {}, [Tensor(name="t", shape=(100, 100), format=form, std=0.5, mean=2.0)])
        read = Reader(tmp_path / "file.gguf")
        values = np.frombuffer(read.data, dtype, 10_000, read.start).astype(np.float32)
        assert values.mean() == pytest.approx(2.0, abs=0.05) and values.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("form", [Q4_0, Q8_0, Q4_K, Q5_K, Q6_K])
def test_quantized_tensors_have_their_width(tmp_path: Path, form: Any) -> None:
    write_gguf(tmp_path / "file.gguf", {}, [Tensor(name="t", shape=(40, 1024), format=form, std=0.02)])
    read = Reader(tmp_path / "file.gguf")
    n_blocks = 40 * 1024 // form.n_values
    blocks = np.frombuffer(read.data, np.uint8, n_blocks * form.dtype.itemsize, read.start).reshape(n_blocks, -1)
    values = _DECODERS[form.id](blocks)
    assert values.shape == (n_blocks, form.n_values)
    assert abs(values.mean()) < 0.003 and values.std() == pytest.approx(0.02, rel=0.05)


def test_a_row_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of 48"):
        _ = Tensor(name="t", shape=(2, 48), format=Q4_0, std=1.0).n_bytes


def test_text_file_has_the_shapes_of_the_model(tmp_path: Path) -> None:
    for quantization in QUANTIZATIONS:
        write_text(tmp_path / "text.gguf", _SMALL, quantization)
        read = Reader(tmp_path / "text.gguf")
        assert read.metadata["phi2.block_count"] == 8 and len(read.metadata["tokenizer.ggml.tokens"]) == 300
        assert read.tensors["blk.7.attn_qkv.weight"][0] == (256, 768)
        assert read.tensors["output.bias"][:2] == ((300,), 0)
        assert len(read.tensors) == 5 + 8 * 10


def test_vision_file_projects_the_last_block(tmp_path: Path) -> None:
    write_vision(tmp_path / "vision.gguf", TINY, "f16")
    read = Reader(tmp_path / "vision.gguf")
    assert read.metadata["clip.vision.feature_layer"] == [TINY.vision.enc_n_layers]
    assert read.tensors["v.patch_embd.weight"][:2] == ((14, 14, 3, 48), 1)
    assert read.tensors["v.blk.1.ffn_down.weight"][0] == (134, 48)


def test_vision_matrices_of_8_bits_where_blocks_divide_the_rows(tmp_path: Path) -> None:
    """The published image encoder's second MLP matrix has rows of 4304 values, 134.5 blocks."""
    vision = replace(SIZE_2B.vision, enc_n_layers=1, enc_dim=64, enc_ff_dim=48, proj_inner_dim=32, proj_out_dim=32)
    write_vision(tmp_path / "vision.gguf", replace(SIZE_2B, vision=vision), "q8_0")
    formats = {name: form for name, (_, form, _) in Reader(tmp_path / "vision.gguf").tensors.items()}
    assert (formats["v.blk.0.ffn_up.weight"], formats["v.blk.0.ffn_down.weight"]) == (8, 1)
    assert (formats["v.patch_embd.weight"], formats["mm.2.weight"]) == (1, 8)


def test_mixes_take_the_bytes_that_llama_cpp_publishes() -> None:
    """Bits per value of phi2-like models, which its quantizer prints: 4.5 and 8.5 but for the head, and about 5."""
    bits = {}
    for quantization in QUANTIZATIONS:
        matrices = [tensor for tensor in mixed_tensors(SIZE_2B.text, quantization) if len(tensor.shape) == 2]
        n_values = sum(math.prod(tensor.shape) for tensor in matrices)
        bits[quantization] = 8 * sum(tensor.n_bytes for tensor in matrices) / n_values
    assert bits["Q8_0"] == 8.5
    assert 4.5 < bits["Q4_0"] < 4.7
    assert 4.8 < bits["Q4_K_M"] < 5.2


def _halves(blocks: npt.NDArray[np.uint8], start: int) -> npt.NDArray[np.float32]:
    return blocks[:, start : start + 2].copy().view("<f2").astype(np.float32)


def _nibbles(packed: npt.NDArray[np.uint8], group: int) -> npt.NDArray[np.float32]:
    grouped = packed.reshape(len(packed), -1, group)
    return np.concatenate([grouped & 15, grouped >> 4], -1).reshape(len(packed), -1).astype(np.float32)


def _q4_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:], 16) - 8)


def _q8_0(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8)


def _scales_and_offsets(blocks: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """get_scale_min_k4 of ggml-quants.c, for each of the eight sub-blocks of 32."""
    packed = blocks[:, 4:16].astype(np.uint16)
    scales, offsets = [], []
    for j in range(8):
        if j < 4:
            scale, offset = packed[:, j] & 63, packed[:, j + 4] & 63
        else:
            scale = (packed[:, j + 4] & 15) | ((packed[:, j - 4] >> 6) << 4)
            offset = (packed[:, j + 4] >> 4) | ((packed[:, j] >> 6) << 4)
        scales.append(scale)
        offsets.append(offset)
    spread = [np.repeat(np.stack(parts, 1), 32, 1).astype(np.float32) for parts in (scales, offsets)]
    return _halves(blocks, 0) * spread[0], _halves(blocks, 2) * spread[1]


def _q4_k(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    scales, offsets = _scales_and_offsets(blocks)
    return scales * _nibbles(blocks[:, 16:], 32) - offsets


def _q5_k(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    scales, offsets = _scales_and_offsets(blocks)
    high = np.concatenate([(blocks[:, 16:48] >> j) & 1 for j in range(8)], 1).astype(np.float32)
    return scales * (_nibbles(blocks[:, 48:], 32) + 16 * high) - offsets


def _q6_k(blocks: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    low = _nibbles(blocks[:, :128], 64)
    high = np.concatenate(
        [(blocks[:, 128 + 32 * h : 160 + 32 * h] >> 2 * j) & 3 for h in range(2) for j in range(4)], 1
    )
    scales = np.repeat(blocks[:, 192:208].view(np.int8), 16, 1).astype(np.float32)
    return _halves(blocks, 208) * scales * (low + 16 * high.astype(np.float32) - 32)


_DECODERS = {2: _q4_0, 8: _q8_0, 12: _q4_k, 13: _q5_k, 14: _q6_k}
