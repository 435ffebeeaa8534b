"""The OpenVINO engine on real graphs, from ONNX and from IR, against NumPy."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import numpy as np
import openvino
import pytest
from onnx import TensorProto, helper

from edgevlm_runtime.engines import Engine, Graph, Shared, SharedBuffers, open_engine
from edgevlm_runtime.errors import EngineError
from tests.runtime.onnx_files import save, tensor

DIM, CLASSES = 512, 48


@pytest.fixture(scope="module")
def engine() -> Engine:
    return open_engine("openvino", threads=1)


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((DIM, CLASSES), np.float32)


@pytest.fixture(scope="module", params=["linear.onnx", "linear.xml"])
def linear(
    engine: Engine, weight: np.ndarray, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Graph:
    folder = tmp_path_factory.mktemp("graphs")
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"]), helper.make_node("Neg", ["y"], ["z"])]
    inputs = [tensor("x", TensorProto.FLOAT, ["images", DIM])]
    outputs = [tensor(name, TensorProto.FLOAT, ["images", CLASSES]) for name in ("y", "z")]
    file = save(folder / "linear.onnx", nodes, inputs, outputs, {"weight": weight})
    openvino.save_model(openvino.Core().read_model(file), folder / "linear.xml", compress_to_fp16=False)
    return engine.open(folder / str(request.param))


def rows(seed: int, n: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, DIM), np.float32)


def test_outputs_are_named_ordered_and_in_float32(linear: Graph, weight: np.ndarray) -> None:
    """Products of this size would be off by 0.1 and more in bfloat16."""
    outputs = linear.run({"x": rows(1)})
    assert list(outputs) == ["y", "z"]
    np.testing.assert_allclose(outputs["y"], rows(1).astype(np.float64) @ weight, atol=1e-3)
    np.testing.assert_array_equal(outputs["z"], -outputs["y"])


def test_strided_inputs_and_other_sizes(linear: Graph, weight: np.ndarray) -> None:
    x = np.asfortranarray(rows(2, 8))[::2]
    np.testing.assert_allclose(linear.run({"x": x})["y"], x @ weight, atol=1e-3)
    assert linear.run({"x": x[:1]})["y"].shape == (1, CLASSES)


def test_outputs_outlive_later_runs(linear: Graph, weight: np.ndarray) -> None:
    first = linear.run({"x": rows(3)})["y"]
    linear.run({"x": rows(4)})
    np.testing.assert_allclose(first, rows(3) @ weight, atol=1e-3)


def test_threads_share_a_graph(linear: Graph, weight: np.ndarray) -> None:
    got: dict[int, np.ndarray] = {}
    start = threading.Barrier(6)

    def work(seed: int) -> None:
        start.wait()
        for _ in range(20):
            got[seed] = linear.run({"x": rows(seed)})["y"]

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for seed in range(6):
        np.testing.assert_allclose(got[seed], rows(seed) @ weight, atol=1e-3)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "missing input x"),
        ({"x": rows(0), "extra": rows(0)}, "no such input extra"),
        ({"x": rows(0).astype(np.float64)}, f"must be float32 (?, {DIM}), not float64 (5, {DIM})"),
        ({"x": rows(0)[:, :7]}, "not float32 (5, 7)"),
    ],
)
def test_wrong_inputs(linear: Graph, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EngineError) as error:
        linear.run(inputs)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_are_not_in_memory_twice(engine: Engine, tmp_path: Path) -> None:
    """The first run packs them; their pages of the file are let go of, and come back where they are read again."""
    size = 2048
    weight = np.random.default_rng(0).standard_normal((size, size), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["y"])]
    inputs, outputs = ([tensor(name, TensorProto.FLOAT, ["n", size])] for name in ("x", "y"))
    file = save(tmp_path / "large.onnx", nodes, inputs, outputs, {"weight": weight})
    openvino.save_model(openvino.Core().read_model(file), tmp_path / "large.xml", compress_to_fp16=False)
    graph = engine.open(tmp_path / "large.xml")
    x = np.ones((2, size), np.float32)
    for _ in range(2):
        np.testing.assert_allclose(graph.run({"x": x})["y"], x @ weight, atol=1e-2)
        assert resident_bytes(tmp_path / "large.bin") < weight.nbytes / 8


def resident_bytes(file: Path) -> int:
    """How much of a mapped file is in this process's memory."""
    blocks = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE)
    sizes = [re.search(r"^Rss: +(\d+) kB$", block, re.MULTILINE) for block in blocks if str(file) in block]
    assert sizes, "the file is mapped"
    return sum(1024 * int(found[1]) for found in sizes if found)


def test_shared_buffers_are_refused(linear: Graph) -> None:
    with pytest.raises(EngineError, match=r"in place \(x\).*--engine onnxruntime"):
        linear.run({}, SharedBuffers((Shared(input="x", output="y", array=rows(0)),)))


def test_integers_keep_their_type(engine: Engine, tmp_path: Path) -> None:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"]), helper.make_node("Add", ["ids", "ids"], ["sum"])]
    table = np.arange(20, dtype=np.float32).reshape(10, 2)
    outputs = [tensor("y", TensorProto.FLOAT, ["n", 2]), tensor("sum", TensorProto.INT64, ["n"])]
    path = save(tmp_path / "gather.onnx", nodes, [tensor("ids", TensorProto.INT64, ["n"])], outputs, {"table": table})
    found = engine.open(path).run({"ids": np.array([3, 1])})
    np.testing.assert_array_equal(found["y"], table[[3, 1]])
    assert found["sum"].dtype == np.int64


def test_failures_inside_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two threads: with one, OpenVINO 2026.4 gives an empty output instead of failing."""
    inputs = [tensor(name, TensorProto.FLOAT, [f"{name} rows", f"{name} columns"]) for name in ("a", "b")]
    nodes = [helper.make_node("MatMul", ["a", "b"], ["y"])]
    path = save(tmp_path / "product.onnx", nodes, inputs, [tensor("y", TensorProto.FLOAT, ["rows", "columns"])])
    graph = open_engine("openvino", threads=2).open(path)
    with pytest.raises(EngineError, match=r"product\.onnx: OpenVINO failed") as error:
        graph.run({"a": np.zeros((5, 2), np.float32), "b": np.zeros((3, 2), np.float32)})
    assert "\n" not in str(error.value)
    assert graph.run({name: np.ones((3, 3), np.float32) for name in ("a", "b")})["y"].shape == (3, 3)
    assert capfd.readouterr() == ("", "")


def test_files_that_are_not_graphs(engine: Engine, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x08\xff\xff" * 40)
    nodes = [helper.make_node("NoSuchOperator", ["x"], ["y"], domain="com.microsoft")]
    ports = [tensor("x", TensorProto.FLOAT, [1])], [tensor("y", TensorProto.FLOAT, [1])]
    save(tmp_path / "unknown.onnx", nodes, *ports)
    (tmp_path / "weights.bin").write_bytes(b"0")
    for name in ("noise.onnx", "unknown.onnx", "missing.onnx", "missing.xml", "weights.xml"):
        with pytest.raises(EngineError, match=name) as error:
            engine.open(tmp_path / name)
        assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
