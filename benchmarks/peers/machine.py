"""How fast this machine can be: bytes a second from memory, operations a second of large matrix products."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

_REPEATS = 5
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes a second, and multiplications and additions a second in three types."""

    bandwidth: float
    int8: float
    bfloat16: float
    float32: float

    @property
    def matrix_peak(self) -> float:
        """The fastest type's."""
        return max(self.int8, self.bfloat16, self.float32)


def measure_limits(threads: int, size: int) -> Limits:
    """In this process, with square matrices of `size` and arrays 64 times as large; each the best of some tries."""
    torch.set_num_threads(threads)
    return Limits(
        bandwidth=_bandwidth(64 * size**2 // 3),
        int8=_int8(threads, size),
        bfloat16=_matmul(torch.bfloat16, size),
        float32=_matmul(torch.float32, size),
    )


def describe() -> dict[str, object]:
    """What else of the machine decides: instructions for small numbers, and memory."""
    flags: set[str] = set()
    memory = 0
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            flags = set(line.split())
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemTotal"):
            memory = 1024 * int(line.split()[1])
    known = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {"memory_gib": round(memory / _GIB, 1), "instructions": [name for name in known if name in flags]}


def _bandwidth(n_values: int) -> float:
    """The better of reading (a sum) and of STREAM's triad a = b + s * c; float32 arrays, far beyond the caches."""
    a, b, c = torch.zeros(n_values), torch.ones(n_values), torch.ones(n_values)
    reading = a.nbytes / _best(lambda: b.sum())
    triad = 3 * a.nbytes / _best(lambda: torch.add(b, c, alpha=3.0, out=a))
    return max(reading, triad)


def _matmul(dtype: torch.dtype, size: int) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return 2 * size**3 / _best(lambda: a @ b)


def _int8(threads: int, size: int) -> float:
    """ONNX Runtime's MatMulInteger, the weights packed at load as a model's are."""
    weights = np.random.default_rng(0).integers(-127, 128, (size, size), np.int8)
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
        "int8",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [size, size])],
        [helper.make_tensor_value_info("c", TensorProto.INT32, [size, size])],
        [onnx.numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    inputs = {"a": np.random.default_rng(1).integers(0, 128, (size, size), np.uint8)}
    return 2 * size**3 / _best(lambda: session.run(None, inputs))


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
