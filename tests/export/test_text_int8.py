"""Text towers in int8: what becomes of their operators, and how near they stay to float32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgevlm_export.text_int8 import quantize_text
from edgevlm_runtime.errors import CheckpointError
from edgevlm_runtime.fidelity import mean_cosine

VOCAB, DIM = 3000, 192


class Tower(nn.Module):
    """A block of CLIP's text tower: embeddings and positions, attention, an MLP, a projection of the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, DIM), nn.Embedding(32, DIM)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(DIM) for _ in range(3))
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.fc1, self.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
        self.project = nn.Linear(DIM, 64)

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.tokens(token_ids) + self.positions.weight[: token_ids.shape[1]]
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        x = x + self.out((q @ k.transpose(1, 2) / DIM**0.5).softmax(-1) @ v)
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))
        projected: Tensor = self.project(self.norm3(x[:, -1]))
        return projected


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    torch.manual_seed(0)
    ids = torch.zeros(2, 9, dtype=torch.int64)
    free = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.onnx.export(
        Tower().eval(),
        (ids,),
        dynamo=True,
        verbose=False,
        opset_version=20,
        input_names=["token_ids"],
        output_names=["embeddings"],
        dynamic_shapes=free,
    )
    assert program is not None
    return program.model


def save(model: ir.Model, path: Path) -> Path:
    ir.save(model, path, external_data=f"{path.name}.data")
    return path


def embed(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(0, VOCAB, (16, 20))
    result: np.ndarray = session.run(None, {"token_ids": ids})[0]
    return result


def test_embeddings_stay_near_float32_in_a_quarter_of_the_size(traced: ir.Model, tmp_path: Path) -> None:
    original = save(traced.clone(), tmp_path / "fp32.onnx")
    quantized = save(quantize_text(traced.clone()), tmp_path / "int8.onnx")
    cosine = mean_cosine(embed(quantized), embed(original))
    assert 0.999 < cosine < 1 - 1e-7
    sizes = [(tmp_path / f"{name}.onnx.data").stat().st_size for name in ("int8", "fp32")]
    assert sizes[0] / sizes[1] < 0.28


def test_what_becomes_of_operators(traced: ir.Model) -> None:
    before = Counter(node.op_type for node in traced.graph)
    quantized = quantize_text(traced.clone())
    after = Counter(node.op_type for node in quantized.graph)
    assert before["MatMul"] == 6 and before["Gemm"] == 1
    assert after["MatMulNBits"] == 5 and after["MatMul"] == 2  # attention multiplies activations
    assert quantized.opset_imports.keys() == {"", "com.microsoft"}
    tensors = [value.const_value for value in quantized.graph.initializers.values() if value.const_value is not None]
    matrices = sorted((tensor.shape.numpy(), str(tensor.dtype)) for tensor in tensors if len(tensor.shape) == 2)
    # Positions, which are few; the table's scales and rows.
    assert matrices == [((32, DIM), "FLOAT"), ((VOCAB, 1), "FLOAT"), ((VOCAB, DIM), "INT8")]


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [({"alpha": 0.5}, (64, 8)), ({"transA": 1}, (64, 8)), ({"transB": 1, "beta": 2.0}, (8, 64))],
)
def test_other_kinds_of_gemm_are_left_alone(attributes: dict[str, float], shape: tuple[int, int]) -> None:
    matrix = ir.Value(name="w", const_value=ir.Tensor(np.ones(shape, np.float32), name="w"))
    matrix.shape, matrix.type = ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", shape=ir.Shape((64, 64)), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("Gemm", [x, matrix], attributes)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[matrix], opset_imports={"": 20})
    quantize_text(ir.Model(graph, ir_version=10))
    assert node.op_type == "Gemm" and "w" in graph.initializers


def test_a_table_that_is_not_finite_is_named(traced: ir.Model) -> None:
    model = traced.clone()
    table = model.graph.initializers["tokens.weight"]
    assert table.const_value is not None
    broken = table.const_value.numpy().copy()
    broken[7, 3] = np.nan
    table.const_value = ir.Tensor(broken, name=table.name)
    with pytest.raises(CheckpointError, match=rf"tensor {table.name}: .*finite"):
        quantize_text(model)
