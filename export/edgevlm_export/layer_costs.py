"""What int8 in each layer costs a graph's outputs: how much nearer to float32 they are with this one layer in float32.

What a layer does to its own output, or to a graph that is in float32 otherwise, says little about that: errors meet
others, which average them away or multiply them. So a probe runs the whole int8 graph with one layer in float32 at a
time. Each layer of the probe is an If that computes one of two branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper

from edgevlm_export.sessions import open_session, worst_cosine
from edgevlm_runtime.engines import Array

_PROBE = "probe.onnx"
_CHOSEN = "edgevlm.chosen"  # the probe's input: the number of the layer that computes in float32
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_RENAMED = "_QuantizeLinear_Input"  # what ONNX Runtime adds to the name of a quantized output of the graph


def layer_costs(
    original: Path, quantized: Path, layers: Iterable[str], inputs: Sequence[Mapping[str, Array]]
) -> dict[str, float]:
    """For each layer the mean cosine of the worst output with float32 once this layer is back: high for costly ones.

    original and quantized are one graph, before and after; both lie in one folder, where the probe is put as well.
    """
    probe = onnx.load(original, load_external_data=False)
    twins = _Twins(onnx.load(quantized, load_external_data=False).graph, frozenset(layers))
    found = _make_switchable(probe.graph, twins)
    onnx.save(probe, original.parent / _PROBE)
    reference, session = open_session(original), open_session(original.parent / _PROBE)
    cosines = np.zeros((len(inputs), len(found)))
    for row, feed in zip(cosines, inputs, strict=True):
        expected = reference.run(None, dict(feed))
        for number in range(len(found)):
            outputs = session.run(None, {**feed, _CHOSEN: np.array(number, np.int64)})
            row[number] = worst_cosine(outputs, expected)
    return dict(zip(found, cosines.mean(axis=0).tolist(), strict=True))


class _Twins:
    """The layers of the int8 graph, and the conversions around them."""

    def __init__(self, graph: GraphProto, layers: frozenset[str]) -> None:
        self.initializers = list(graph.initializer)
        self.layers = {node.name: node for node in graph.node if node.name in layers}
        self._makers = {output: node for node in graph.node for output in node.output if node.op_type in _QDQ}
        self._readers = {node.input[0]: node for node in graph.node if node.op_type in _QDQ}

    def branch(self, layer: str) -> GraphProto:
        """A layer in int8, from tensors of the float32 graph, its output as the int8 graph hands it on."""
        nodes: dict[str, NodeProto] = {}
        node = self.layers[layer]
        inputs = [self._converted(name, f"{layer}:", nodes) for name in node.input]
        results = [_copy(node, inputs, f"{layer}:int8")]
        reader = self._readers.get(node.output[0])
        while reader is not None:  # QuantizeLinear, then DequantizeLinear, unless the output stays in float32
            source = results[-1].output[0]
            results.append(_copy(reader, [source, *reader.input[1:]], f"{source}:{reader.op_type}"))
            reader = self._readers.get(reader.output[0]) if reader.op_type == "QuantizeLinear" else None
        return _branch([*nodes.values(), *results])

    def _converted(self, name: str, prefix: str, nodes: dict[str, NodeProto]) -> str:
        """What a layer reads for a tensor of the int8 graph: copies of its conversions, added to the nodes."""
        maker = self._makers.get(name)
        if maker is None:
            return name.removesuffix(_RENAMED)
        if name not in nodes:
            source = self._converted(maker.input[0], prefix, nodes)
            nodes[name] = _copy(maker, [source, *maker.input[1:]], prefix + name)
        return prefix + name


def _make_switchable(graph: GraphProto, twins: _Twins) -> list[str]:
    """Turn each layer of the float32 graph into an If; the layers in the order of their numbers."""
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in twins.initializers if tensor.name not in known)
    graph.input.append(helper.make_tensor_value_info(_CHOSEN, TensorProto.INT64, []))
    found: list[str] = []
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.name in twins.layers:
            graph.initializer.append(helper.make_tensor(f"{node.name}:number", TensorProto.INT64, [], [len(found)]))
            found.append(node.name)
            nodes.extend(_switch(node, twins))
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return found


def _switch(node: NodeProto, twins: _Twins) -> Iterator[NodeProto]:
    """A layer in int8, or in float32 where its number is chosen."""
    prefix = f"{node.name}:"
    yield helper.make_node("Equal", [_CHOSEN, f"{prefix}number"], [f"{prefix}chosen"])
    yield helper.make_node(
        "If",
        [f"{prefix}chosen"],
        [node.output[0]],
        name=f"{prefix}either",
        then_branch=_branch([_copy(node, node.input, f"{prefix}float32")]),
        else_branch=twins.branch(node.name),
    )


def _copy(node: NodeProto, inputs: Iterable[str], output: str) -> NodeProto:
    copy = helper.make_node(node.op_type, list(inputs), [output], name=output, domain=node.domain)
    copy.attribute.extend(node.attribute)
    return copy


def _branch(nodes: Sequence[NodeProto]) -> GraphProto:
    output = nodes[-1].output[0]
    return helper.make_graph(nodes, output, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])
