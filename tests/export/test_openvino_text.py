"""OpenVINO IR of models that generate text: what its rules make of ONNX Runtime's operators, and the whole export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import openvino as ov
import pytest
import torch

from edgevlm_export import openvino_rules, text_pipeline
from edgevlm_export.int4 import quantize_int4
from edgevlm_export.openvino_ir import write_ir
from edgevlm_export.pipeline import ExportRequest, export
from edgevlm_export.scene import draw_image
from edgevlm_runtime.bundle import Bundle
from edgevlm_runtime.engines import Array, FloatArray
from edgevlm_runtime.errors import ExportError, FidelityError
from edgevlm_runtime.manifest import Precision
from edgevlm_runtime.model import load
from edgevlm_runtime.options import GenerateOptions, LoadOptions
from edgevlm_runtime.verify import verify_bundle
from tests.export.conftest import Trace, caching_trace

SHORT = GenerateOptions(max_tokens=16)


def save(path: Path, node: ir.Node, inputs: list[ir.Value], constants: list[ir.Value]) -> None:
    """A graph of one node, whose output is y."""
    node.outputs[0].name = "y"
    graph = ir.Graph(
        inputs, node.outputs, nodes=[node], initializers=constants, opset_imports={"": 20, "com.microsoft": 1}
    )
    ir.save(ir.Model(graph, ir_version=10), path)


def constant(name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)


def floats(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))


def run_ir(path: Path, inputs: dict[str, FloatArray]) -> FloatArray:
    """What OpenVINO makes of an ONNX file's IR, with nothing of the input rounded."""
    write_ir(path, path.with_suffix(".xml"))
    options = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    compiled = ov.Core().compile_model(path.with_suffix(".xml"), "CPU", options)
    y: FloatArray = compiled(inputs)["y"]
    return y


@pytest.mark.parametrize("n_inputs", [64, 96, 100, 70])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_with_blocks(tmp_path: Path, bits: int, n_inputs: int) -> None:
    """Odd numbers of blocks, whose zero points end in half a byte, and blocks that are padded."""
    rng = np.random.default_rng(bits)
    weight, x = rng.normal(0.3, 1, (48, n_inputs)), rng.normal(0, 1, (1, 5, n_inputs)).astype(np.float32)
    bias = rng.normal(0, 1, 48).astype(np.float32)
    matrix, parts, size = (in_4_bits if bits == 4 else in_8_bits)(weight)
    constants = [constant(name, part) for name, part in zip(("q", "s", "z"), parts, strict=False)]
    last = constant("bias", bias)
    places = [*constants, *[None] * (4 - len(constants)), last]
    attributes = {"K": n_inputs, "N": 48, "bits": bits, "block_size": size, "accuracy_level": 4}
    value = floats("x", 1, "tokens", n_inputs)
    node = ir.node("MatMulNBits", [value, *places], attributes, domain="com.microsoft")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((1, "tokens", 48))
    save(tmp_path / "product.onnx", node, [value], [*constants, last])
    np.testing.assert_allclose(run_ir(tmp_path / "product.onnx", {"x": x}), x @ matrix.T + bias, rtol=0, atol=2e-3)


def in_4_bits(weight: Array) -> tuple[FloatArray, tuple[Array, ...], int]:
    quantized = quantize_int4(torch.from_numpy(weight).float(), torch.eye(weight.shape[1]))
    parts = (quantized.packed, quantized.scales.ravel(), quantized.zeros.ravel())
    return quantized.restore(weight.shape[1]).numpy(), parts, 2 * quantized.packed.shape[-1]


def in_8_bits(weight: Array) -> tuple[FloatArray, tuple[Array, ...], int]:
    """In blocks of 32 around 128, as the operator has it where no zero points are given."""
    n_blocks = -(-weight.shape[1] // 32)
    padded = np.pad(weight, ((0, 0), (0, 32 * n_blocks - weight.shape[1]))).reshape(len(weight), n_blocks, 32)
    scales = (np.abs(padded).max(axis=-1) / 127).astype(np.float32)
    codes = np.rint(padded / scales[..., None])
    restored = (codes * scales[..., None]).reshape(len(weight), -1)[:, : weight.shape[1]]
    return restored.astype(np.float32), ((codes + 128).astype(np.uint8), scales.ravel()), 32


def test_weights_stay_compressed(tmp_path: Path, tiny: Path, exported: Callable[[Precision], Bundle]) -> None:
    """The plugin has every product of the decoder on its codes, and its attention with the cache in one operator."""
    bundle = exported("int4")
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}
    compiled = ov.Core().compile_model(bundle.root / "decoder.xml", "CPU", options)
    nodes = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    kinds = [(str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str))) for info in nodes]
    products = [precision for kind, precision in kinds if kind == "FullyConnected"]
    assert products and set(products) <= {"u4", "u8"}
    assert compiled.get_property("KV_CACHE_PRECISION") == ov.Type.u8
    cache = bundle.manifest.cache
    assert cache is not None
    # These names tell fused operators from others. Attention that is not copies the whole cache for every token.
    names = [node.node_type for node in compiled.create_infer_request().get_profiling_info()]
    assert names.count("ScaledDotProductAttentionWithKVCache") == cache.n_layers
    assert names.count("RoPE") == 2 * cache.n_layers


Export = Callable[[Precision], Bundle]


@pytest.fixture(scope="module")
def traced() -> Trace:
    return caching_trace()


@pytest.fixture(scope="module")
def exported(tiny: Path, tmp_path_factory: pytest.TempPathFactory, traced: Trace) -> Export:
    """A verified bundle with IR, made once for each precision."""
    root, made = tmp_path_factory.mktemp("openvino"), dict[str, Bundle]()

    def make(precision: Precision) -> Bundle:
        if precision not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(text_pipeline, "trace", traced)
                made[precision] = export(request_of(tiny, root / precision, precision))
        return made[precision]

    return make


def request_of(source: Path, out: Path, precision: Precision) -> ExportRequest:
    return ExportRequest(name="tiny", family="moondream2", source=source, out=out, precision=precision, openvino=True)


def test_every_graph_has_ir_that_is_checksummed(exported: Export) -> None:
    manifest = exported("int4").manifest
    for role, graph in manifest.graphs.items():
        assert graph.compiled == {"openvino": f"{role}.xml"}
        assert {graph.file, f"{role}.xml", f"{role}.bin"} <= manifest.files.keys()


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_the_bundle_answers_on_all_engines(exported: Export, precision: Precision) -> None:
    bundle = exported(precision)
    answers = []
    for engine in ("onnxruntime", "openvino", "mixed"):
        result = verify_bundle(bundle, LoadOptions(engine=engine))
        assert result.engine == engine and all(check.passed for check in result.checks)
        with load(bundle, LoadOptions(engine=engine)) as model:
            image = model.encode(draw_image())
            answers.append([model.query(image, text, SHORT).token_ids for text in ("What is this?", "How many?")])
    if precision == "fp32":
        assert answers[0] == answers[1] == answers[2]


def test_ir_that_answers_otherwise_is_refused(
    tiny: Path, tmp_path: Path, traced: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_pipeline, "trace", traced)
    monkeypatch.setattr(openvino_rules, "_ZERO", 120)
    with pytest.raises(FidelityError, match="with openvino: "):
        export(request_of(tiny, tmp_path / "out", "int8"))
    assert not (tmp_path / "out").exists()


def test_a_missing_openvino_is_told_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ExportError, match=r'pip install "edgevlm\[openvino\]"'):
        export(request_of(tmp_path / "no checkpoint", tmp_path / "out", "int8"))


def test_equal_small_constants_are_one_node(exported: Callable[[Precision], Bundle]) -> None:
    """What opening a model takes goes by its number of nodes."""
    model = ov.Core().read_model(exported("int4").root / "decoder.xml")
    small = [
        (str(node.get_element_type()), str(node.get_output_shape(0)), node.data.tobytes())
        for node in model.get_ops()
        if node.get_type_name() == "Constant" and node.data.ndim > 0 and node.data.size <= 64
    ]
    assert len(small) > 10 and len(set(small)) == len(small)


def test_attention_of_all_tokens(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs = {name: rng.normal(0, 1, (2, 7, 24)).astype(np.float32) for name in ("q", "k", "v")}
    values = [floats(name, "crops", 7, 24) for name in inputs]
    node = ir.node("MultiHeadAttention", values, {"num_heads": 3}, domain="com.microsoft")
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(("crops", 7, 24))
    save(tmp_path / "attention.onnx", node, values, [])
    q, k, v = (torch.from_numpy(x).reshape(2, 7, 3, 8).transpose(1, 2) for x in inputs.values())
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    np.testing.assert_allclose(run_ir(tmp_path / "attention.onnx", inputs), expected.numpy(), rtol=0, atol=1e-5)
