"""Graphs for NPUs: for Hexagons by the real compiler, run in its simulator; for Intel's as IR of fixed shapes."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from edgevlm_export.npu import TARGETS, CompiledGraph, compile_graph, find_target, hexagon
from edgevlm_export.openvino_ir import free_shapes, write_ir
from edgevlm_export.trace import trace_loaded
from edgevlm_runtime.engines import Graph, Shared, SharedBuffers, open_engine
from edgevlm_runtime.errors import EngineError, ExportError, InvalidOption
from edgevlm_runtime.manifest import TensorSpec

SIDE, CLASSES = 16, 10
TARGET = "hexagon-v75"


class Net(nn.Module):
    """Convolutions, a depthwise one with channels of very different sizes, a layer norm and attention-like products."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)
        with torch.no_grad():
            self.depthwise.weight *= torch.logspace(-2, 1, 8)[:, None, None, None]

    def forward(self, images: Tensor) -> Tensor:
        maps = nn.functional.gelu(self.depthwise(self.first(images)))
        tokens: Tensor = self.norm(maps.flatten(2).transpose(1, 2))
        mixed = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ tokens
        logits: Tensor = self.head(mixed.mean(1))
        return logits


def pictures(seed: int, n: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"images": rng.standard_normal((1, 3, SIDE, SIDE), np.float32)} for _ in range(n)]


def specs(first: int | str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    return (
        (TensorSpec(name="images", dtype="float32", shape=(first, 3, SIDE, SIDE)),),
        (TensorSpec(name="logits", dtype="float32", shape=(first, CLASSES)),),
    )


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def traced(net: Net) -> ir.Model:
    return trace_loaded(net, *specs(1), {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundle")


@pytest.fixture(scope="module")
def compiled(traced: ir.Model, folder: Path) -> CompiledGraph:
    return compile_graph(find_target(TARGET), traced.clone(), pictures(0, 8), folder, "classifier")


@pytest.fixture(scope="module")
def simulated(compiled: CompiledGraph, folder: Path) -> Graph:
    return open_engine("qnn", threads=1).open(folder / compiled.compiled["qnn"])


def logits_of(net: Net, picture: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(picture["images"])))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_files_of_a_compiled_graph(compiled: CompiledGraph, folder: Path) -> None:
    assert compiled.file == "classifier.onnx"
    assert compiled.compiled == {"qnn": "classifier.qnn.onnx"}
    assert compiled.compiler.startswith("onnxruntime-qnn 2.")
    (node,) = onnx.load(folder / "classifier.qnn.onnx").graph.node
    assert node.op_type == "EPContext"
    (binary,) = folder.glob("*.bin")
    named = next(a.s.decode() for a in node.attribute if a.name == "ep_cache_context")
    assert named == binary.name, "a path would be of this machine"
    assert b";arch=75;" in binary.read_bytes()


def test_the_simulator_agrees_with_torch(simulated: Graph, net: Net) -> None:
    for picture in pictures(1, 3):
        assert cosine(simulated.run(picture)["logits"], logits_of(net, picture)) > 0.999


def test_the_graph_beside_it_is_quantized_and_runs_on_the_cpu(
    compiled: CompiledGraph, folder: Path, simulated: Graph, net: Net
) -> None:
    graph = onnx.load(folder / compiled.file).graph
    kinds = {(t.data_type, len(t.dims)) for t in graph.initializer}
    assert (onnx.TensorProto.INT8, 4) in kinds and (onnx.TensorProto.UINT8, 2) in kinds
    assert not [t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    on_cpu = open_engine("onnxruntime", threads=1).open(folder / compiled.file)
    for picture in pictures(2, 3):
        found = on_cpu.run(picture)["logits"]
        assert cosine(found, logits_of(net, picture)) > 0.999
        assert cosine(found, simulated.run(picture)["logits"]) > 0.9999


def test_the_simulator_keeps_stdout_clean(compiled: CompiledGraph, folder: Path) -> None:
    """It greets once a process, when its library is loaded."""
    code = (
        "import sys; from pathlib import Path; from edgevlm_runtime.engines import open_engine\n"
        "open_engine('qnn', 1).open(Path(sys.argv[1])); print('opened')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / compiled.compiled["qnn"])],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert (done.stdout, done.stderr) == ("opened\n", "")


def test_moved_and_opened_again(compiled: CompiledGraph, folder: Path, simulated: Graph, tmp_path: Path) -> None:
    for path in folder.glob("classifier.qnn*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    moved = open_engine("qnn", threads=1).open(tmp_path / compiled.compiled["qnn"])
    (picture,) = pictures(3, 1)
    np.testing.assert_array_equal(moved.run(picture)["logits"], simulated.run(picture)["logits"])


def test_threads_share_a_compiled_graph(simulated: Graph) -> None:
    wanted = [simulated.run(picture)["logits"] for picture in pictures(4, 3)]
    got: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        got[i] = simulated.run(pictures(4, 3)[i])["logits"]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal([got[i] for i in range(3)], wanted)


def test_wrong_inputs_of_a_compiled_graph(simulated: Graph) -> None:
    images = pictures(0, 1)[0]["images"]
    with pytest.raises(EngineError, match=r"must be float32 \(1, 3, 16, 16\), not float32 \(2, 3, 16, 16\)"):
        simulated.run({"images": np.concatenate([images, images])})
    with pytest.raises(EngineError, match="in place"):
        simulated.run({}, SharedBuffers((Shared(input="images", output="logits", array=images),)))


def test_a_damaged_binary(
    compiled: CompiledGraph, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in folder.glob("classifier.qnn*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (binary,) = tmp_path.glob("*.bin")
    binary.write_bytes(binary.read_bytes()[: binary.stat().st_size // 2])
    with pytest.raises(EngineError, match=r"classifier\.qnn\.onnx: .* the simulator: ") as error:
        open_engine("qnn", threads=1).open(tmp_path / compiled.compiled["qnn"])
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_what_was_not_compiled_runs_on_the_cpu(compiled: CompiledGraph, folder: Path, net: Net) -> None:
    graph = open_engine("qnn", threads=1).open(folder / compiled.file)
    (picture,) = pictures(5, 1)
    assert cosine(graph.run(picture)["logits"], logits_of(net, picture)) > 0.999


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith("hexagon") and name != TARGET])
def test_other_hexagons(name: str, traced: ir.Model, net: Net, tmp_path: Path) -> None:
    result = compile_graph(find_target(name), traced.clone(), pictures(0, 4), tmp_path, "vision")
    (picture,) = pictures(6, 1)
    found = open_engine("qnn", threads=1).open(tmp_path / result.compiled["qnn"]).run(picture)["logits"]
    assert cosine(found, logits_of(net, picture)) > 0.999


def test_a_hexagon_that_the_compiler_does_not_know(traced: ir.Model, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"onnxruntime-qnn 2.* does not know hexagon-v99"):
        hexagon.compile_graph(traced.clone(), pictures(0, 1), tmp_path, "vision", 99)


def test_refused_operators_are_named(net: Net, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Refused(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (net(torch.linalg.det(images)[:, :, None, None] + images),)

    model = trace_loaded(Refused(), *specs(1), {})
    with pytest.raises(ExportError, match=r"vision: hexagon-v75 can not run 1 Det \(.*\)$") as error:
        compile_graph(find_target(TARGET), model, pictures(0, 1), tmp_path, "vision")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_intel_graphs_have_fixed_shapes_and_do_not_round(traced: ir.Model, net: Net, tmp_path: Path) -> None:
    result = compile_graph(find_target("intel"), traced.clone(), (), tmp_path, "vision")
    assert result.compiled == {"openvino": "vision.xml"} and result.compiler.startswith("openvino 20")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "vision.bin", "vision.onnx", "vision.onnx.data", "vision.xml",
    ]  # fmt: skip
    (picture,) = pictures(7, 1)
    found = open_engine("openvino", threads=1).open(tmp_path / "vision.xml").run(picture)["logits"]
    np.testing.assert_allclose(found, logits_of(net, picture), atol=1e-5)


def test_intel_refuses_free_shapes(net: Net, tmp_path: Path) -> None:
    free = trace_loaded(net, *specs("images"), {"images": 2})
    with pytest.raises(ExportError, match=r"vision: the NPU needs fixed shapes, .*: images \(Parameter\), "):
        compile_graph(find_target("intel"), free, (), tmp_path, "vision")


def test_quantized_graphs_become_ir_too(compiled: CompiledGraph, folder: Path, net: Net, tmp_path: Path) -> None:
    write_ir(folder / compiled.file, tmp_path / "vision.xml")
    (picture,) = pictures(8, 1)
    found = open_engine("openvino", threads=1).open(tmp_path / "vision.xml").run(picture)["logits"]
    assert cosine(found, logits_of(net, picture)) > 0.999


def test_ir_of_operators_that_openvino_lacks(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("NoSuch", ["x"], ["y"], domain="odd")], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("odd", 1)]), tmp_path / "odd.onnx")
    for ask in (lambda path: write_ir(path, tmp_path / "odd.xml"), free_shapes):
        with pytest.raises(ExportError, match=r"odd\.onnx: openvino 20.*NoSuch") as error:
            ask(tmp_path / "odd.onnx")
        assert "\n" not in str(error.value)


def test_unknown_targets() -> None:
    with pytest.raises(InvalidOption, match=r"'hexagon-v1' is unknown; known: hexagon-v73, .*, hexagon-v81, intel$"):
        find_target("hexagon-v1")
