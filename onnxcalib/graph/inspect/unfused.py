"""The QuantizeLinear and DequantizeLinear that onnxruntime left when it optimized a graph, each with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from onnx import GraphProto, ModelProto, NodeProto

from ..dynamic import find_rows
from ..dynamic_lstm import DYNAMIC_LSTM
from ..index import Index, all_nodes, index_graphs, reads, subgraphs
from ..ops import DEQUANTIZE, QUANTIZE

# Operators of onnxruntime that read integers and give float.
INTEGER_TO_FLOAT = (DEQUANTIZE, "QGemm", "MatMulIntegerToFloat")
NO_KERNEL = "which has no integer kernel in onnxruntime here"
REQUANTIZES = "requantizes the tensor for the layers that read fewer bits"


class Unfused(NamedTuple):
    """A node that onnxruntime left, its operator, the float tensor that it reads or makes, and why it stands there."""

    op: str
    tensor: str
    reason: str


def list_unfused(quantized: ModelProto, graph: GraphProto) -> tuple[Unfused, ...]:
    """What is left unfused in ``graph``, the optimized graph of ``quantized``, each with a reason.

    That is every QuantizeLinear and DequantizeLinear, those in bodies included, but for those that dynamic layers need.
    """
    # onnxruntime renames tensors when it changes their layout, but keeps the nodes' names.
    tensors: dict[str, str] = {
        node.name: _float_side(node) for node in all_nodes(quantized.graph) if node.op_type in (QUANTIZE, DEQUANTIZE)
    }
    behind: set[str] = set()  # tensors that integers reach, those of the graphs around a body among them
    return tuple(
        record for each, index in index_graphs(graph) for record in _list_unfused(each, index, tensors, behind)
    )


def _list_unfused(graph: GraphProto, index: Index, tensors: Mapping[str, str], behind: set[str]) -> Iterator[Unfused]:
    for node in graph.node:
        if not _kinds(node).isdisjoint(INTEGER_TO_FLOAT) or not behind.isdisjoint(reads(node)):
            behind.update(node.output)
    ahead: set[str] = set()  # tensors that reach integers
    for node in reversed(graph.node):
        if QUANTIZE in _kinds(node) or not ahead.isdisjoint(node.output):
            ahead.update(reads(node))
    for node in graph.node:
        if node.op_type == QUANTIZE and find_rows(index, node.input[0]) is not None:
            continue
        if node.op_type == QUANTIZE:
            reason = _explain_quantize(index, node, node.input[0] in behind)
        elif node.op_type == DEQUANTIZE:
            reason = _explain_dequantize(index, node, node.output[0] in ahead)
        else:
            continue
        yield Unfused(node.op_type, tensors.get(node.name, _float_side(node)), reason)


def _kinds(node: NodeProto) -> set[str]:
    """The operators of a node and of the nodes in its bodies."""
    return {node.op_type}.union(inner.op_type for body in subgraphs(node) for inner in all_nodes(body))


def _float_side(node: NodeProto) -> str:
    tensor: str = node.input[0] if node.op_type == QUANTIZE else node.output[0]
    return tensor


def _explain_quantize(index: Index, node: NodeProto, behind_integers: bool) -> str:
    producer = index.producer.get(node.input[0])
    if producer is not None and producer.op_type == "Max" and len(producer.input) == 1:  # keeps a node in float
        producer = index.producer.get(producer.input[0])
    if producer is None:
        return "entry of the graph"
    if producer.op_type == DEQUANTIZE:
        return REQUANTIZES
    if not behind_integers:
        return f"entry of the graph: nothing before {producer.op_type} is quantized"
    return f"follows {producer.op_type}, {NO_KERNEL}"


def _explain_dequantize(index: Index, node: NodeProto, ahead_of_integers: bool) -> str:
    readers = sorted({n.op_type for n in index.readers(node.output[0])})
    named = ", ".join(readers)
    if node.input[0] in index.initializers:
        return f"constant of {named}, {NO_KERNEL}"
    if not readers:
        return "exit of the graph"
    if DYNAMIC_LSTM in readers:
        return f"read by {named}, which quantizes what it reads as it runs"
    if not ahead_of_integers:
        return f"exit of the graph: nothing behind {named} is quantized"
    return REQUANTIZES if readers == [QUANTIZE] else f"read by {named}, {NO_KERNEL}"
