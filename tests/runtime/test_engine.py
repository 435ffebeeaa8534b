"""The ONNX Runtime engine on real graphs: results, in-place buffers, threads, and errors of one line."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgevlm_runtime.engines import Graph, Shared, SharedBuffers, open_engine, threads
from edgevlm_runtime.errors import EdgeVLMError, EngineError, InvalidOption
from tests.runtime.onnx_files import save, tensor

HEADS, HEAD_DIM, CONTEXT = 2, 32, 24
DIM = HEADS * HEAD_DIM


@pytest.fixture
def linear(tmp_path: Path) -> tuple[Graph, np.ndarray]:
    weight = np.random.default_rng(0).standard_normal((64, 48), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    inputs = [tensor("x", TensorProto.FLOAT, ["tokens", 64])]
    outputs = [tensor("y", TensorProto.FLOAT, ["tokens", 48]), tensor("z", TensorProto.FLOAT, ["tokens", 48])]
    path = save(tmp_path / "linear.onnx", nodes, inputs, outputs, {"weight": weight})
    return open_engine("onnxruntime", threads=1).open(path), weight


@pytest.fixture
def attention(tmp_path: Path) -> Graph:
    """Grouped query attention without rotary embeddings: the cache is read and written at `past` and `present`."""
    inputs = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"]
    node = helper.make_node(
        "GroupQueryAttention",
        inputs,
        ["out", "present_key", "present_value"],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=HEADS,
    )
    rows = [tensor(name, TensorProto.FLOAT, [1, "tokens", DIM]) for name in ("query", "key", "value")]
    caches = [tensor(f"past_{name}", TensorProto.FLOAT, [1, HEADS, CONTEXT, HEAD_DIM]) for name in ("key", "value")]
    lengths = [tensor("seqlens_k", TensorProto.INT32, [1]), tensor("total", TensorProto.INT32, [])]
    presents = [tensor(f"present_{n}", TensorProto.FLOAT, [1, HEADS, CONTEXT, HEAD_DIM]) for n in ("key", "value")]
    outputs = [tensor("out", TensorProto.FLOAT, [1, "tokens", DIM]), *presents]
    path = save(tmp_path / "attention.onnx", [node], [*rows, *caches, *lengths], outputs)
    return open_engine("auto", threads=2).open(path)


def attend(rows: np.ndarray) -> np.ndarray:
    """Causal attention of (3, tokens, DIM) queries, keys and values, in float64."""
    query, key, value = rows.astype(np.float64).reshape(3, -1, HEADS, HEAD_DIM).transpose(0, 2, 1, 3)
    scores = query @ key.transpose(0, 2, 1) / np.sqrt(HEAD_DIM)
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    out: np.ndarray = weights / weights.sum(-1, keepdims=True) @ value
    return out.transpose(1, 0, 2).reshape(-1, DIM)


def empty_caches() -> tuple[np.ndarray, np.ndarray]:
    shape = (1, HEADS, CONTEXT, HEAD_DIM)
    return np.zeros(shape, np.float32), np.zeros(shape, np.float32)


def share(caches: tuple[np.ndarray, np.ndarray]) -> SharedBuffers:
    return SharedBuffers(
        tuple(
            Shared(input=f"past_{name}", output=f"present_{name}", array=cache)
            for name, cache in zip(("key", "value"), caches, strict=True)
        )
    )


def run_attention(graph: Graph, rows: np.ndarray, shared: SharedBuffers, total: int) -> np.ndarray:
    inputs = {name: row[None] for name, row in zip(("query", "key", "value"), rows, strict=True)}
    lengths = {"seqlens_k": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}
    outputs = graph.run(inputs | lengths, shared)
    assert list(outputs) == ["out"]
    return outputs["out"].squeeze(0)


def test_outputs_are_named_and_equal_numpy(linear: tuple[Graph, np.ndarray]) -> None:
    graph, weight = linear
    x = np.random.default_rng(1).standard_normal((5, 64), np.float32)
    outputs = graph.run({"x": x})
    assert list(outputs) == ["y", "z"]
    np.testing.assert_allclose(outputs["y"], x @ weight, atol=1e-4)
    np.testing.assert_array_equal(outputs["z"], -outputs["y"])


def test_strided_and_empty_inputs(linear: tuple[Graph, np.ndarray]) -> None:
    graph, weight = linear
    x = np.random.default_rng(1).standard_normal((64, 10), np.float32).T[::2]
    np.testing.assert_allclose(graph.run({"x": x})["y"], x @ weight, atol=1e-4)
    assert graph.run({"x": np.zeros((0, 64), np.float32)})["y"].shape == (0, 48)


def test_outputs_outlive_the_graph_and_later_runs(linear: tuple[Graph, np.ndarray]) -> None:
    graph, weight = linear
    x = np.ones((3, 64), np.float32)
    first = graph.run({"x": x})["y"]
    graph.run({"x": x * 7})
    del graph
    np.testing.assert_allclose(first, x @ weight, atol=1e-4)


def test_shared_buffers_are_updated_in_place(attention: Graph) -> None:
    rows = np.random.default_rng(2).standard_normal((3, 9, DIM), np.float32)
    caches = empty_caches()
    shared, addresses = share(caches), [cache.ctypes.data for cache in caches]
    outs = [run_attention(attention, rows[:, :6], shared, 6)]
    outs += [run_attention(attention, rows[:, step : step + 1], shared, step + 1) for step in range(6, 9)]
    np.testing.assert_allclose(np.concatenate(outs), attend(rows), atol=1e-5)
    assert [cache.ctypes.data for cache in caches] == addresses
    for cache, new in zip(caches, rows[1:], strict=True):
        np.testing.assert_array_equal(cache[0, :, :9].transpose(1, 0, 2).reshape(9, DIM), new)
        assert not cache[0, :, 9:].any()


def test_two_caches_in_turns_and_one_after_a_failure(attention: Graph) -> None:
    """What is prepared for the buffers of a cache belongs to them alone, and outlives a run that was refused."""
    rows = np.random.default_rng(3).standard_normal((2, 3, 5, DIM), np.float32)
    first, second = share(empty_caches()), share(empty_caches())
    outs: list[list[np.ndarray]] = [[], []]
    for step in range(5):
        for out, shared, each in zip(outs, (first, second), rows, strict=True):
            with pytest.raises(EngineError, match="query"):
                run_attention(attention, each[:, step : step + 1, :-1], shared, step + 1)
            out.append(run_attention(attention, each[:, step : step + 1], shared, step + 1))
        # Buffers that live no longer, and may leave their addresses to others.
        run_attention(attention, rows[0], share(empty_caches()), 5)
    for out, each in zip(outs, rows, strict=True):
        np.testing.assert_allclose(np.concatenate(out), attend(each), atol=1e-5)


def test_a_graph_keeps_no_buffers_alive(attention: Graph) -> None:
    caches = empty_caches()
    alive = [weakref.ref(cache) for cache in caches]
    run_attention(attention, np.zeros((3, 1, DIM), np.float32), share(caches), 1)
    del caches
    assert [reference() for reference in alive] == [None, None]


def test_threads_rest_between_runs(linear: tuple[Graph, np.ndarray], tmp_path: Path) -> None:
    """The next graph needs the cores: ONNX Runtime's threads would go on spinning for tens of milliseconds."""
    graph = open_engine("onnxruntime", threads=2).open(tmp_path / "linear.onnx")
    used = []
    for _ in range(5):
        graph.run({"x": np.ones((4000, 64), np.float32)})
        start = time.process_time()
        time.sleep(0.05)
        used.append(time.process_time() - start)
    assert min(used) < 0.002, "other threads of this process may work now and then"


def test_threads_share_a_graph(attention: Graph) -> None:
    wanted, got = {}, {}

    def work(seed: int) -> None:
        rows = np.random.default_rng(seed).standard_normal((3, 20, DIM), np.float32)
        shared = share(empty_caches())
        steps = [run_attention(attention, rows[:, step : step + 1], shared, step + 1) for step in range(20)]
        wanted[seed], got[seed] = attend(rows), np.concatenate(steps)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(got) == 6
    for seed in wanted:
        np.testing.assert_allclose(got[seed], wanted[seed], atol=1e-5)


GOOD = np.zeros((2, 64), np.float32)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "missing input x"),
        ({"x": GOOD, "extra": GOOD}, "no such input extra"),
        ({"x": GOOD.astype(np.float64)}, "must be float32 (tokens, 64), not float64 (2, 64)"),
        ({"x": GOOD.astype(">f4")}, "must be float32"),
        ({"x": GOOD[:, :63]}, "not float32 (2, 63)"),
        ({"x": GOOD[0]}, "not float32 (64)"),
    ],
)
def test_wrong_inputs(linear: tuple[Graph, np.ndarray], inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EngineError) as error:
        linear[0].run(inputs)
    assert words in str(error.value)
    assert "linear.onnx" in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_shared_buffers(attention: Graph) -> None:
    rows = np.zeros((3, 1, DIM), np.float32)
    cache = np.zeros((1, HEADS, CONTEXT, HEAD_DIM), np.float32)
    frozen = cache.copy()
    frozen.flags.writeable = False
    for wrong in (cache[:, :, :-1], cache.astype(np.float16), cache.transpose(0, 1, 3, 2), frozen):
        with pytest.raises(EngineError, match="past_value"):
            run_attention(attention, rows, share((cache, wrong)), 1)
    strided = np.zeros((1, HEADS, CONTEXT, 2 * HEAD_DIM), np.float32)[..., ::2]
    with pytest.raises(EngineError, match="contiguous"):
        run_attention(attention, rows, share((cache, strided)), 1)


def test_failures_inside_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [tensor("x", TensorProto.FLOAT, ["n"]), tensor("shape", TensorProto.INT64, [2])]
    path = save(tmp_path / "reshape.onnx", nodes, inputs, [tensor("y", TensorProto.FLOAT, ["a", "b"])])
    graph = open_engine("onnxruntime", threads=1).open(path)
    with pytest.raises(EngineError, match=r"reshape\.onnx: ONNX Runtime failed") as error:
        graph.run({"x": np.zeros(5, np.float32), "shape": np.array([2, 3])})
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_files_that_are_not_graphs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = open_engine("onnxruntime", threads=1)
    (tmp_path / "noise.onnx").write_bytes(b"\x08\xff\xff" * 40)
    (tmp_path / "empty.onnx").write_bytes(b"")
    nodes = [helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")]
    signature = [tensor("x", TensorProto.FLOAT, [1])], [tensor("y", TensorProto.FLOAT, [1])]
    save(tmp_path / "unknown.onnx", nodes, *signature)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    lost = save(tmp_path / "lost.onnx", nodes, *signature, {"w": np.ones(1, np.float32)})
    lost.with_name("lost.onnx.data").unlink()
    for name in ("noise.onnx", "empty.onnx", "unknown.onnx", "lost.onnx", "missing.onnx"):
        with pytest.raises(EngineError, match=name) as error:
            engine.open(tmp_path / name)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_unknown_engine() -> None:
    with pytest.raises(InvalidOption, match=r"'tensorrt' is unknown; known: auto, onnxruntime, openvino, qnn, mixed"):
        open_engine("tensorrt", None)


@pytest.mark.parametrize(
    ("engine", "package", "way_out"),
    [
        ("auto", "onnxruntime", "pip install onnxruntime"),
        ("openvino", "openvino", 'pip install "edgevlm[openvino]"'),
        ("qnn", "onnxruntime_qnn", 'pip install "edgevlm[npu]"'),
    ],
)
def test_missing_package(engine: str, package: str, way_out: str) -> None:
    code = (
        f"import sys; sys.modules['{package}'] = None\n"
        "from edgevlm_runtime.engines import open_engine\n"
        f"try: open_engine('{engine}', 1)\n"
        "except Exception as error: sys.stdout.write(f'{type(error).__name__}: {error}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.startswith("EngineError: ")
    assert done.stdout.endswith(way_out)
    assert "\n" not in done.stdout


def test_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_THREADS", " 3 ")
    assert threads.thread_count(None) == 3
    assert threads.thread_count(5) == 5
    monkeypatch.setenv("EDGEVLM_THREADS", "")
    assert threads.thread_count(None) == threads.physical_cores() >= 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", "9" * 5000, "1025", "²"])
def test_thread_variable_that_can_not_be_used(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEVLM_THREADS", text)
    with pytest.raises(InvalidOption, match="EDGEVLM_THREADS"):
        threads.thread_count(None)
    with pytest.raises(EdgeVLMError):
        threads.thread_count(True)


def test_physical_cores_count_siblings_once_and_keep_quotas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(threads, "_siblings", lambda cpu: f"{cpu % 4},{cpu % 4 + 4}")
    monkeypatch.setattr(threads, "_quota", lambda: float("inf"))
    assert threads.physical_cores() == 4
    monkeypatch.setattr(threads, "_quota", lambda: 2.5)
    assert threads.physical_cores() == 3
