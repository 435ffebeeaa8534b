"""Fold constants, join what torch split into several operators, drop what nothing uses and torch's notes."""

from __future__ import annotations

import logging
from collections.abc import Collection

import onnx_ir as ir
from onnxscript import optimizer


def run(model: ir.Model, untouched: Collection[str] = ()) -> ir.Model:
    """Simplify in place; parameters without values, and those named in `untouched`, are left alone."""
    values = {name: model.graph.initializers[name].const_value for name in untouched}
    for name in untouched:
        model.graph.initializers[name].const_value = None
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every parameter that has no value yet
    try:
        optimizer.optimize(model)
    finally:
        logger.setLevel(level)
    for name, value in values.items():
        model.graph.initializers[name].const_value = value
    for notes in (model, model.graph, *model.graph, *_values(model.graph)):
        notes.metadata_props.clear()
    return model


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
