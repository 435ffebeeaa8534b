"""llama.cpp at work, in the Python of its own environment: a request in JSON as argument, a Run in JSON on stdout.

Imports nothing of this repository. The image takes the fastest way there is: all its positions in one batch, the
embedding of BOS among them, and a second question goes on from the kept prefix.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

llama: Any = import_module("llama_cpp")
mtmd: Any = import_module("llama_cpp.mtmd_cpp")

_Q8_0 = 8  # ggml's number of the type


class Peer:
    """A loaded text and vision model with a KV cache."""

    def __init__(self, request: dict[str, Any]) -> None:
        self._request = request
        llama.llama_backend_init()
        self._model = _loaded(llama.llama_model_load_from_file(request["text"].encode(), _model_params(request)))
        self._context = _loaded(llama.llama_init_from_model(self._model, _context_params(request)))
        self._vision = _loaded(
            mtmd.mtmd_init_from_file(request["vision"].encode(), self._model, _vision_params(request))
        )
        self._memory = llama.llama_get_memory(self._context)
        self._vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._dim = llama.llama_model_n_embd(self._model)
        self._rng = np.random.default_rng(request["seed"])

    def encode(self, index: int) -> npt.NDArray[np.float32]:
        """Embeddings (patches, dim) of a new image."""
        side = self._request["side"]
        pixels = np.random.default_rng((self._request["seed"], index)).integers(0, 256, (side, side, 3), np.uint8)
        data = pixels.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        bitmap = mtmd.mtmd_bitmap_init(side, side, data)
        chunks = mtmd.mtmd_input_chunks_init()
        marker = mtmd.mtmd_default_marker()
        text = mtmd.mtmd_input_text(text=marker, text_len=len(marker), add_special=False, parse_special=True)
        images = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        _succeeded(mtmd.mtmd_tokenize(self._vision, chunks, ctypes.byref(text), images, 1))
        chunk = self._image_chunk(chunks)
        _succeeded(mtmd.mtmd_encode_chunk(self._vision, chunk))
        shape = (mtmd.mtmd_input_chunk_get_n_tokens(chunk), self._dim)
        embeddings = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(self._vision), shape).copy()
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        return embeddings

    def read_image(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Fill an empty cache with BOS and the image."""
        llama.llama_memory_clear(self._memory, True)
        rows = np.concatenate([np.zeros((1, self._dim), np.float32), embeddings])
        batch = llama.llama_batch_init(len(rows), self._dim, 1)
        ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        self._decode(batch, len(rows), 0)
        llama.llama_batch_free(batch)

    def read(self, n_tokens: int, start: int) -> int:
        """Read random tokens from a position on; the likeliest next one."""
        return self._read([int(token) for token in self._rng.integers(10, self._vocab_size, n_tokens)], start)

    def write(self, token: int, start: int, n_tokens: int) -> float:
        """Tokens per second of writing some more."""
        begun = time.perf_counter()
        for position in range(start, start + n_tokens):
            token = self._read([token], position)
        return n_tokens / (time.perf_counter() - begun)

    def forget(self, start: int) -> None:
        """Drop what the cache has from a position on."""
        llama.llama_memory_seq_rm(self._memory, 0, start, -1)

    def _read(self, tokens: list[int], start: int) -> int:
        batch = llama.llama_batch_init(len(tokens), 0, 1)
        for i, token in enumerate(tokens):
            batch.token[i] = token
        self._decode(batch, len(tokens), start)
        llama.llama_batch_free(batch)
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(self._context, -1), (self._vocab_size,))
        return int(logits.argmax())

    def _decode(self, batch: Any, n_tokens: int, start: int) -> None:
        """Run a batch; logits of its last position only."""
        batch.n_tokens = n_tokens
        for i in range(n_tokens):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = start + i, 1, i == n_tokens - 1
            batch.seq_id[i][0] = 0
        _succeeded(llama.llama_decode(self._context, batch))

    def _image_chunk(self, chunks: Any) -> Any:
        for i in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, i)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                return chunk
        raise RuntimeError("llama.cpp: the prompt has no image")


def work(request: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Run."""
    begun = time.perf_counter()
    peer = Peer(request)
    load_ms = _ms(begun)
    if request["least_memory"]:
        return _answer_once(peer, request)
    first = _new_image(peer, request, 0)
    new = [_new_image(peer, request, 1 + i) for i in range(request["times"])] if request["first_image"] else [first]
    second = [_ask_again(peer, request) for _ in range(request["question_times"])]
    speeds = [_answer_speed(peer, request, second[-1][1]) for _ in range(request["times"])]
    peak_rss = _peak_rss()
    depths = request["depths"] if request["full"] else ()
    return {
        "load_ms": load_ms,
        "first_image_ms": sum(first.values()),
        **{phase: statistics.median(each[phase] for each in new) for phase in first},
        "second_question_ms": statistics.median(ms for ms, _ in second),
        "tokens_per_second": statistics.median(speeds),
        "peak_rss": peak_rss,
        "depth_tokens_per_second": _speeds(peer, request, depths),
    }


def _answer_once(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    """An image, a question and an answer."""
    _new_image(peer, request, 0)
    peer.write(0, request["prefix_tokens"] + request["question_tokens"], request["answer_tokens"])
    return {"peak_rss": _peak_rss()}


def _new_image(peer: Peer, request: dict[str, Any], index: int) -> dict[str, float]:
    begun = time.perf_counter()
    embeddings = peer.encode(index)
    encoded = time.perf_counter()
    peer.read_image(embeddings)
    read = time.perf_counter()
    peer.read(request["question_tokens"], request["prefix_tokens"])
    return {"vision_ms": 1e3 * (encoded - begun), "prefix_ms": 1e3 * (read - encoded), "question_ms": _ms(read)}


def _ask_again(peer: Peer, request: dict[str, Any]) -> tuple[float, int]:
    """Milliseconds to the first token of another question about the image, and that token."""
    peer.forget(request["prefix_tokens"])
    begun = time.perf_counter()
    token = peer.read(request["question_tokens"], request["prefix_tokens"])
    return _ms(begun), token


def _answer_speed(peer: Peer, request: dict[str, Any], token: int) -> float:
    """Tokens per second of an answer that begins with a token."""
    start = request["prefix_tokens"] + request["question_tokens"]
    peer.forget(start)
    return peer.write(token, start, request["answer_tokens"])


def _speeds(peer: Peer, request: dict[str, Any], depths: Sequence[int]) -> dict[int, float]:
    """Tokens per second by depth; each goes on from what was read for the one before."""
    speeds, length = {}, 0
    for depth in sorted(depths):
        peer.forget(length)
        token = peer.read(depth - length, length)
        speeds[depth] = peer.write(token, depth, request["sweep_tokens"])
        length = depth
    return speeds


def _model_params(request: dict[str, Any]) -> Any:
    # Mapped, it loads fastest; read, weights that it repacks are not in memory twice.
    mode = llama.LLAMA_LOAD_MODE_NONE if request["least_memory"] else llama.LLAMA_LOAD_MODE_MMAP
    return _with(llama.llama_model_default_params(), n_gpu_layers=0, load_mode=mode)


def _context_params(request: dict[str, Any]) -> Any:
    needed = request["prefix_tokens"] + request["question_tokens"] + request["answer_tokens"]
    context = needed if request["least_memory"] else request["context"]
    types = {"type_k": _Q8_0, "type_v": _Q8_0} if request["cache"] == "q8_0" else {}
    return _with(
        llama.llama_context_default_params(),
        n_ctx=context,
        n_batch=context,
        n_ubatch=request["ubatch"],
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        flash_attn_type=int(request["flash"]),
        **types,
    )


def _vision_params(request: dict[str, Any]) -> Any:
    return _with(
        mtmd.mtmd_context_params_default(),
        use_gpu=False,
        warmup=False,
        print_timings=False,
        n_threads=request["threads"],
        flash_attn_type=int(request["vision_flash"]),
    )


def _with(params: Any, **values: Any) -> Any:
    """Parameters with some values. ctypes would take a name that this version of llama.cpp does not have."""
    known = {field[0] for field in params._fields_}
    for name, value in values.items():
        if name not in known:
            raise RuntimeError(f"llama.cpp has no parameter {name}; build the version that setup.py names")
        setattr(params, name, value)
    return params


def _loaded(pointer: Any) -> Any:
    if not pointer:
        raise RuntimeError("llama.cpp could not load a file; it has printed why")
    return pointer


def _succeeded(code: int) -> None:
    if code != 0:
        raise RuntimeError(f"llama.cpp failed with code {code}; it has printed why")


def _ms(begun: float) -> float:
    return 1e3 * (time.perf_counter() - begun)


def _peak_rss() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    # What the library prints belongs to stderr; the answer alone to stdout.
    answer = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answer, "w", encoding="utf-8") as out:
        json.dump(work(json.loads(sys.argv[1])), out)
