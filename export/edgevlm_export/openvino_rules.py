"""How operators that only ONNX Runtime has become OpenVINO's, in the forms that its CPU plugin runs fast.

MatMulNBits: a product with a matrix that the plugin keeps in 8 or 4 bits: codes -> Convert -> Subtract -> Multiply.
MultiHeadAttention: ScaledDotProductAttention.
GroupQueryAttention: rotary embedding and ScaledDotProductAttention over a cache that is the graph's own state. The
plugin keeps it in place only as ReadValue -> Gather(beam_idx) -> Concat, with a subgraph that says how it begins.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops
from openvino.frontend import FrontEndManager, NodeContext
from openvino.frontend.onnx import ConversionExtension
from openvino.op.util import Variable, VariableInfo

from edgevlm_runtime.engines.openvino import BEAM_IDX

_MICROSOFT = "com.microsoft"
_ZERO = 128  # what 8 bits without zero points are read around
_SMALL = 4096  # elements of a constant that may be there more than once


class Converter:
    """Converts one model, which lives no longer than this: its weights are not copied."""

    def __init__(self) -> None:
        self._place = ops.constant([0], np.int32)  # a parameter, once there is a model to have it
        self._memory: list[npt.NDArray[Any]] = []  # of constants, which do not keep it
        self._variables: list[Variable] = []
        self._sinks: list[ov.Node] = []
        self._angles: tuple[ov.Output, ov.Output] | None = None

    def convert(self, path: Path) -> ov.Model:
        """The graph of an ONNX file in OpenVINO's operators.

        Raises:
            Exception: any of the engine's `FAILURES`.
        """
        rules: dict[str, Callable[[NodeContext], list[ov.Output]]] = {
            "MatMulNBits": self._multiply_blocks,
            "MultiHeadAttention": _attend_fully,
            "GroupQueryAttention": self._attend_cached,
        }
        # Core.read_model would try other formats as well, whose readers complain on stderr.
        reader = FrontEndManager().load_by_framework("onnx")
        for name, rule in rules.items():
            reader.add_extension(ConversionExtension(name, _MICROSOFT, rule))
        model = reader.convert(reader.load(path))
        if self._sinks:
            self._add_state(model)
        _share_constants(model)
        return model

    def _add_state(self, model: ov.Model) -> None:
        """Give a model the state that its attention reads, in the place of inputs and outputs."""
        beam_idx = ops.parameter([-1], np.int32, BEAM_IDX)
        beam_idx.output(0).set_names({BEAM_IDX})
        for reader in self._place.output(0).get_target_inputs():
            reader.replace_source_output(beam_idx.output(0))
        model.add_parameters([beam_idx])
        model.add_variables(self._variables)
        model.add_sinks(self._sinks)
        for result in model.results:
            if any(name.startswith("present.") for name in result.input_value(0).names):
                model.remove_result(result)
        for parameter in model.get_parameters():
            if parameter.get_friendly_name().startswith("past_key_values."):
                model.remove_parameter(parameter)
        model.validate_nodes_and_infer_types()

    def _multiply_blocks(self, node: NodeContext) -> list[ov.Output]:
        """A product with a matrix in blocks, and the addition of a bias where there is one."""
        bits, size, n_inputs = (node.get_attribute(name) for name in ("bits", "block_size", "K"))
        codes = _values(node.get_input(1))
        n_outputs, n_blocks = codes.shape[:2]
        zeros = _values(node.get_input(3)) if _is_given(node, 3) else np.full((n_outputs, n_blocks), _ZERO, np.uint8)
        scales = _values(node.get_input(2)).reshape(n_outputs, n_blocks, 1)
        matrix = self._decompress(codes, zeros, scales, (bits, size))
        x = node.get_input(0)
        if padding := n_blocks * size - n_inputs:
            rank = x.get_partial_shape().rank.get_length()
            x = ops.pad(x, [0] * rank, [0] * (rank - 1) + [padding], "constant", np.float32(0)).output(0)
        product = ops.matmul(x, matrix, False, True)
        return [(ops.add(product, node.get_input(5)) if _is_given(node, 5) else product).output(0)]

    def _decompress(
        self,
        codes: npt.NDArray[np.uint8],
        zeros: npt.NDArray[np.uint8],
        scales: npt.NDArray[np.float32],
        form: tuple[int, int],
    ) -> ov.Node:
        """scale * (code - zero) as float32 (out, in), from codes of `form` (bits, block size)."""
        bits, size = form
        n_outputs, n_blocks = codes.shape[:2]
        kind = ov.Type.u8 if bits == 8 else ov.Type.u4
        if bits == 4:
            zeros = _repack(zeros.reshape(n_outputs, -1), n_blocks)
        stored = (
            self._constant(codes, kind, [n_outputs, n_blocks, size]),
            self._constant(zeros, kind, [n_outputs, n_blocks, 1]),
        )
        code, zero = (ops.convert(constant, "f32") for constant in stored)
        blocks = ops.multiply(ops.subtract(code, zero), ops.constant(scales))
        return ops.reshape(blocks, [n_outputs, n_blocks * size], False)

    def _constant(self, values: npt.NDArray[np.uint8], kind: ov.Type, shape: list[int]) -> ov.Node:
        """A constant on the array's own memory."""
        values = np.ascontiguousarray(values).ravel()
        self._memory.append(values)
        return ops.constant(ov.Tensor(values, ov.Shape(shape), kind))

    def _attend_cached(self, node: NodeContext) -> list[ov.Output]:
        """Attention (1, tokens, heads * head_dim), and the extended keys and values for who asks for them."""
        n_heads, n_kv_heads = node.get_attribute("num_heads"), node.get_attribute("kv_num_heads")
        query, key, value = (
            _split_heads(node.get_input(i), heads) for i, heads in enumerate((n_heads, n_kv_heads, n_kv_heads))
        )
        if node.get_attribute("do_rotary"):
            self._angles = self._angles or self._read_angles(node, query)
            query, key = (_rotate(x, *self._angles) for x in (query, key))
        keys, values = self._remember(key), self._remember(value)
        attended = ops.scaled_dot_product_attention(
            query=query,
            key=_repeat(keys, n_heads // n_kv_heads),
            value=_repeat(values, n_heads // n_kv_heads),
            attention_mask=node.get_input(10),
        )
        return [_merge_heads(attended), keys.output(0), values.output(0)]

    def _read_angles(self, node: NodeContext, query: ov.Node) -> tuple[ov.Output, ov.Output]:
        """Cosines and sines (1, 1, tokens, rotary_dim) of the positions of this call, which all layers share."""
        n_tokens = ops.squeeze(ops.gather(ops.shape_of(query, "i32"), [2], 0), 0)
        end = ops.squeeze(ops.add(node.get_input(5), np.array([1], np.int32)), 0)
        positions = ops.range(ops.subtract(end, n_tokens), end, np.int32(1), "i32")
        tables = (np.concatenate([_values(node.get_input(i))] * 2, axis=-1)[None, None] for i in (7, 8))
        cos, sin = (ops.gather(ops.constant(table), positions, 2).output(0) for table in tables)
        return cos, sin

    def _remember(self, new: ov.Node) -> ov.Node:
        """New keys or values (1, kv_heads, tokens, head_dim) behind those of earlier calls."""
        _, n_heads, _, head_dim = (
            axis.get_length() if axis.is_static else -1 for axis in new.get_output_partial_shape(0)
        )
        info = VariableInfo()
        info.data_shape = ov.PartialShape([-1, n_heads, -1, head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = f"cache.{len(self._variables):03}"
        variable = Variable(info)
        batch = ops.gather(ops.shape_of(self._place, "i64"), [0], 0)
        empty = ops.concat([batch, np.array([n_heads, 0, head_dim], np.int64)], 0)
        past = ops.gather(ov.op.read_value(ops.broadcast(np.float32(0), empty), variable), self._place, 0)
        extended = ops.concat([past, new], 2)
        self._variables.append(variable)
        self._sinks.append(ov.op.assign(extended, variable))
        return extended


def _share_constants(model: ov.Model) -> None:
    """Keep one of small constants that are equal: what OpenVINO takes to open a model goes by its number of nodes."""
    known: dict[tuple[str, str, bytes], ov.Output] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.data.size > _SMALL:
            continue
        output = node.output(0)
        value = (str(output.get_element_type()), str(output.get_shape()), node.data.tobytes())
        first = known.setdefault(value, output)
        if first is not output:
            for reader in output.get_target_inputs():
                reader.replace_source_output(first)


def _attend_fully(node: NodeContext) -> list[ov.Output]:
    """Attention (batch, tokens, heads * head_dim) of every token to every token."""
    n_heads = node.get_attribute("num_heads")
    query, key, value = (_split_heads(node.get_input(i), n_heads) for i in range(3))
    return [_merge_heads(ops.scaled_dot_product_attention(query, key, value))]


def _repack(zeros: npt.NDArray[np.uint8], n_blocks: int) -> npt.NDArray[np.uint8]:
    """Zero points of 4 bits without the half byte that ends a row of an odd number."""
    if n_blocks % 2 == 0:
        return zeros
    flat = np.stack((zeros & 15, zeros >> 4), axis=-1).reshape(len(zeros), -1)[:, :n_blocks].ravel()
    flat = np.pad(flat, (0, flat.size % 2))
    return np.asarray(flat[::2] | flat[1::2] << 4)


def _values(source: ov.Output) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = source.get_node().data
    return values


def _is_given(node: NodeContext, index: int) -> bool:
    if index >= node.get_input_size():
        return False
    return str(node.get_input(index).get_node().get_type_name()) != "NullNode"


def _split_heads(x: ov.Output, n_heads: int) -> ov.Node:
    """(batch, tokens, heads * head_dim) to (batch, heads, tokens, head_dim)."""
    head_dim = x.get_partial_shape()[2].get_length() // n_heads
    return ops.transpose(ops.reshape(x, [0, 0, n_heads, head_dim], True), [0, 2, 1, 3])


def _merge_heads(x: ov.Node) -> ov.Output:
    return ops.reshape(ops.transpose(x, [0, 2, 1, 3]), _merged(x), True).output(0)


def _merged(x: ov.Node) -> list[int]:
    shape = x.get_output_partial_shape(0)
    return [0, 0, shape[1].get_length() * shape[3].get_length()]


def _repeat(x: ov.Node, times: int) -> ov.Node:
    """Each of kv_heads as often as queries share it."""
    if times == 1:
        return x
    shape = x.get_output_partial_shape(0)
    n_heads, head_dim = shape[1].get_length(), shape[3].get_length()
    each = ops.broadcast(ops.unsqueeze(x, 2), np.array([1, 1, times, 1, 1], np.int64), broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(each, [0, n_heads * times, -1, head_dim], True)


def _rotate(x: ov.Node, cos: ov.Output, sin: ov.Output) -> ov.Node:
    """Rotary embedding of the first dimensions of each head, in halves, as the plugin knows it: it is one operator."""
    head_dim = x.get_output_partial_shape(0)[3].get_length()
    rotary_dim = cos.get_partial_shape()[3].get_length()
    turned = x if rotary_dim == head_dim else _dimensions(x, 0, rotary_dim)
    half = rotary_dim // 2
    second = ops.multiply(_dimensions(turned, half, rotary_dim), np.full((1, 1, 1, 1), -1, np.float32))
    swapped = ops.concat([second, _dimensions(turned, 0, half)], -1)
    rotated = ops.add(ops.multiply(turned, cos), ops.multiply(swapped, sin))
    return rotated if turned is x else ops.concat([rotated, _dimensions(x, rotary_dim, head_dim)], -1)


def _dimensions(x: ov.Node, start: int, end: int) -> ov.Node:
    """Some of the last of four axes."""
    return ops.slice(x, *(np.array([number]) for number in (start, end, 1, 3)))
