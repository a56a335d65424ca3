"""Who makes and who reads each tensor of a graph, found in one pass; a snapshot, to be rebuilt after a rewrite."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


class Index:
    """Look-ups into one graph by tensor and node name; nodes inside subgraphs are not listed, what they capture is.

    producer: tensor -> the node that makes it.
    consumers: tensor -> the nodes that read it, each once, in graph order; a node whose subgraphs capture the tensor
    reads it too. Tensors that nobody reads are absent: use ``readers``.
    inputs: graph inputs that are not initializers.
    nodes and position: name -> the node, and its position in the graph's node list; unnamed nodes are absent.
    """

    def __init__(self, graph: GraphProto) -> None:
        self.initializers: dict[str, TensorProto] = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs: list[str] = [value.name for value in graph.input if value.name not in self.initializers]
        self.outputs: list[str] = [value.name for value in graph.output]
        self.producer: dict[str, NodeProto] = {}
        self.consumers: dict[str, list[NodeProto]] = {}
        self.nodes: dict[str, NodeProto] = {}
        self.position: dict[str, int] = {}
        for position, node in enumerate(graph.node):
            if node.name:
                self.nodes[node.name] = node
                self.position[node.name] = position
            for tensor in node.output:
                if tensor:
                    self.producer[tensor] = node
            for tensor in reads(node):
                self.consumers.setdefault(tensor, []).append(node)

    def readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read the tensor; none is an empty list."""
        return self.consumers.get(tensor, [])


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies that a node (If, Loop, Scan) carries in its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """The graph's nodes, each followed by those of its bodies."""
    for node in graph.node:
        yield node
        for body in subgraphs(node):
            yield from all_nodes(body)


def list_names(model: ModelProto) -> set[str]:
    """Names of all nodes and tensors, those inside bodies included."""
    nodes = list(all_nodes(model.graph))
    graphs = [model.graph, *(body for node in nodes for body in subgraphs(node))]
    named = {value.name for graph in graphs for value in (*graph.input, *graph.initializer)}
    return named.union(*((node.name, *node.output) for node in nodes))


def captured(node: NodeProto) -> set[str]:
    """Names that the node's subgraphs, nested ones included, read from outside of them."""
    outer: set[str] = set()
    for graph in subgraphs(node):
        known = {tensor.name for tensor in graph.initializer}
        known.update(tensor.values.name for tensor in graph.sparse_initializer)
        known.update(value.name for value in graph.input)
        for inner in graph.node:
            outer.update(name for name in reads(inner) if name not in known)
            known.update(inner.output)
        outer.update(value.name for value in graph.output if value.name not in known)
    return outer


def reads(node: NodeProto) -> list[str]:
    """Tensors that a node reads, by its inputs first and then by its subgraphs, each once."""
    own = [name for name in node.input if name]
    return list(dict.fromkeys(own + sorted(captured(node))))


def constant(index: Index, name: str) -> np.ndarray | None:
    """Value of an initializer as a fresh array, or None for any other tensor."""
    tensor = index.initializers.get(name)
    return None if tensor is None else numpy_helper.to_array(tensor)


def is_op(node: NodeProto, *kinds: str) -> bool:
    """Whether the node is one of these standard operators."""
    return not node.domain and node.op_type in kinds


def attribute_of(node: NodeProto, name: str, default):
    """Value of the node's attribute, or the default where it is left out."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
