"""Grids in front of layers alone, as TensorRT wants them: what a layer gives is float until another one reads it.

A QuantizeLinear and DequantizeLinear stand in front of what multiplies: layers, products of activations. Of what is
added to the output of a convolution the other operand has them, so that both fuse into one kernel. A pool behind a
layer, and the members of a Concat in front of one, have them so that the kernels between layers move integers.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import GraphProto, NodeProto

from .fusion import data_inputs, moves_values, upper_bound
from .index import Index, is_op
from .ops import ACTIVATIONS, AVERAGES, CONVOLUTIONS, LAYERS, SHAPE_READERS

# Operators that compute each value alone, which a kernel of the layer in front of them takes in.
POINTWISE = tuple(op for op in ACTIVATIONS if op != "LayerNormalization")
INTEGER_POOLS = (*AVERAGES, "MaxPool", "GlobalMaxPool")


def place_in_front(
    graph: GraphProto, index: Index, layers: Collection[str], products: Collection[str], excluded: frozenset[str]
) -> tuple[list[str], frozenset[str], dict[str, frozenset[str]]]:
    """The tensors that get a grid, in graph order, the nodes left in float, and who reads a tensor in float.

    layers: names of those on integers. products: names of MatMuls of two activations. excluded: names of nodes that
    stay in float. What layers make is read on its grid by all but layers in float, so that their kernels need not give
    it in float as well; outputs of the graph are float.
    """
    made = _made_by_layers(graph, index, layers)
    readers: dict[str, set[str]] = {}

    def quantize(node: NodeProto, *tensors: str) -> None:
        for tensor in tensors:
            readers.setdefault(tensor, set()).add(node.name)

    added = find_residuals(index, graph.node, _convolved(graph, layers))
    for node in graph.node:
        if node.name in layers:
            quantize(node, node.input[0])
        elif node.name in products:
            quantize(node, *node.input)
        elif node.name in added.keys() - excluded:
            quantize(node, added[node.name])
        elif is_op(node, *INTEGER_POOLS) and node.name not in excluded and node.input[0] in made:
            quantize(node, node.input[0])
    for node in reversed(graph.node):
        if is_op(node, "Concat") and node.name not in excluded and node.output[0] in readers:
            if _has_alike_members(index, node, made):
                quantize(node, *node.input)
    for node in graph.node:
        if moves_values(index, node) and node.input[0] in readers and not readers.keys().isdisjoint(node.output):
            quantize(node, node.input[0])
    order = [*index.inputs, *(t for node in graph.node for t in node.output)]
    quantized = [t for t in order if t in readers]
    in_float = {t: _others(index, t, readers[t], alone=t in made) for t in quantized}
    return quantized, excluded, {t: names for t, names in in_float.items() if names or t in index.outputs}


def find_residuals(index: Index, nodes: Collection[NodeProto], convolved: Collection[str]) -> dict[str, str]:
    """Add -> the operand that is added to the output of a convolution.

    convolved: outputs of convolutions. Where both operands are, it is the one on the shorter way.
    """
    depths: dict[str, int] = {}
    found = {}
    for node in nodes:
        depths |= dict.fromkeys(node.output, 1 + max((depths.get(t, 0) for t in node.input), default=0))
        operands = [t for t in node.input if t not in index.initializers]
        if is_op(node, "Add") and len(operands) == len(set(operands)) == 2:
            made = [t for t in operands if t in convolved]
            if made:
                deepest = max(made, key=lambda t: depths[t])
                found[node.name] = next(t for t in operands if t != deepest)
    return found


def _convolved(graph: GraphProto, layers: Collection[str]) -> set[str]:
    return {n.output[0] for n in graph.node if n.name in layers and is_op(n, *CONVOLUTIONS)}


def _made_by_layers(graph: GraphProto, index: Index, layers: Collection[str]) -> set[str]:
    """What layers give, and what pointwise operators, pools and operators that move values make of it."""
    made: set[str] = set()
    for node in graph.node:
        passes = is_op(node, *POINTWISE, *AVERAGES, "Concat") or moves_values(index, node)
        if node.name in layers or (passes and not is_op(node, *LAYERS) and not made.isdisjoint(node.input)):
            made.update(node.output)
    return made


def _has_alike_members(index: Index, node: NodeProto, made: Collection[str]) -> bool:
    """Whether layers make all that a Concat joins, all of it with one bound and read by the Concat alone."""
    members = data_inputs(node)
    alone = all(index.readers(t) == [node] and t not in index.outputs for t in members)
    return alone and set(members) <= set(made) and len({upper_bound(index, t) for t in members}) == 1


def _others(index: Index, tensor: str, names: Collection[str], *, alone: bool) -> frozenset[str]:
    """Names of the other readers of a tensor, or of the layers ``alone``, without those that only read its shape.

    A layer of float weights must not read integers.
    """
    readers = (node for node in index.readers(tensor) if is_op(node, *LAYERS) or not alone)
    return frozenset(node.name for node in readers if node.name not in names and not is_op(node, *SHAPE_READERS))
