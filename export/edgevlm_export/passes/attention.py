"""Attention with a cache as ONNX Runtime has it: GroupQueryAttention, and what its inputs are."""

from __future__ import annotations

import onnx_ir as ir

OP_TYPE = "GroupQueryAttention"
QUERY, KEY, VALUE, PAST_KEY, PAST_VALUE, TOTAL, COS, SIN, BIAS = 0, 1, 2, 3, 4, 6, 7, 8, 10
KEY_SCALES, VALUE_SCALES, N_INPUTS = 12, 13, 14


def fixed_shape(value: ir.Value | None) -> tuple[int, ...]:
    """The shape of an input that has no free axis."""
    assert value is not None and value.shape is not None
    return value.shape.numpy()


def attentions(graph: ir.Graph) -> list[ir.Node]:
    """All nodes of that kind, layer after layer."""
    return [node for node in graph if node.op_type == OP_TYPE]
