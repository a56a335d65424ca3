"""Which nodes make and read each tensor of a graph: a snapshot, to be built anew after a rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, overload

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

from .values import read_values

Value = TypeVar("Value")
# Of the standard operators; onnx's checker refuses a graph as an attribute of others.
BODY_OPS = ("If", "Loop", "Scan", "SequenceMap")
BODY, BODIES = AttributeProto.GRAPH, AttributeProto.GRAPHS  # read once, as many attributes are looked at


class Index:
    """Look-ups into one graph by tensor and node name; nodes inside bodies are not listed, what they capture is.

    producer: tensor -> the node that makes it.
    consumers: tensor -> the nodes that read it, each once, in graph order; a node whose bodies capture the tensor reads
    it too. Tensors that nobody reads are absent: use ``readers``.
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

    def __contains__(self, tensor: object) -> bool:
        """Whether the graph has a tensor of this name."""
        return tensor in self.initializers or tensor in self.producer or tensor in self.inputs

    def readers(self, tensor: str) -> list[NodeProto]:
        """The nodes that read the tensor; none is an empty list."""
        return self.consumers.get(tensor, [])

    def inside(self, body: GraphProto) -> Index:
        """Of a body of one of the graph's nodes: initializers and producers are those outside too that it can read."""
        found = Index(body)
        found.initializers = in_scope(body, self.initializers, found.initializers)
        found.producer = in_scope(body, self.producer, found.producer)
        return found


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies that a node (If, Loop, Scan) carries in its attributes."""
    if not _may_have_bodies(node):
        return
    for attribute in node.attribute:
        kind = attribute.type
        if kind == BODY:
            yield attribute.g
        elif kind == BODIES:
            yield from attribute.graphs


def _may_have_bodies(node: NodeProto) -> bool:
    """To look at the attributes of every node takes a third of an index."""
    return bool(node.domain) or node.op_type in BODY_OPS


def has_bodies(node: NodeProto) -> bool:
    """Whether the node carries bodies."""
    if not _may_have_bodies(node):
        return False
    for attribute in node.attribute:
        kind = attribute.type
        if kind in (BODY, BODIES):
            return True
    return False


def all_nodes(graph: GraphProto | FunctionProto) -> Iterator[NodeProto]:
    """The nodes of a graph or a function, each followed by those of its bodies."""
    for node in graph.node:
        yield node
        for body in subgraphs(node) if has_bodies(node) else ():
            yield from all_nodes(body)


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph and the bodies of its nodes, nested ones included."""
    yield graph
    for node in all_nodes(graph):
        if has_bodies(node):
            yield from subgraphs(node)


def index_graphs(graph: GraphProto, index: Index | None = None) -> Iterator[tuple[GraphProto, Index]]:
    """The graph and the bodies of its nodes, nested ones included, each with its index. index: the graph's own."""
    index = Index(graph) if index is None else index
    yield graph, index
    for node in graph.node:
        for body in subgraphs(node) if has_bodies(node) else ():
            yield from index_graphs(body, index.inside(body))


def list_names(model: ModelProto) -> set[str]:
    """Names of all nodes and tensors, those inside bodies included."""
    graphs = list(all_graphs(model.graph))
    named = {value.name for graph in graphs for value in (*graph.input, *graph.initializer)}
    return named.union(*((node.name, *node.output) for graph in graphs for node in graph.node))


def walk_back(index: Index, tensors: Iterable[str], is_end: Callable[[NodeProto], bool]) -> Iterator[NodeProto]:
    """The nodes on which tensors depend, each once, and on every way back none behind an end."""
    waiting, seen = list(tensors), set[str]()
    while waiting:
        tensor = waiting.pop()
        node = index.producer.get(tensor)
        if node is None or tensor in seen:
            continue
        made = [name for name in node.output if name]
        if seen.isdisjoint(made):
            yield node
            waiting += [] if is_end(node) else reads(node)
        seen.update(made)


def tensors_behind(index: Index, nodes: Iterable[str]) -> set[str]:
    """The tensors that depend on nodes, by name; their own outputs are among them."""
    waiting, found = [index.nodes[name] for name in nodes], set[str]()
    while waiting:
        made = [tensor for tensor in waiting.pop().output if tensor and tensor not in found]
        found.update(made)
        waiting += [reader for tensor in made for reader in index.readers(tensor)]
    return found


def captured(node: NodeProto) -> set[str]:
    """Names that the node's bodies, nested ones included, read from outside of them."""
    return set().union(*map(captured_by, subgraphs(node)))


def captured_by(graph: GraphProto) -> set[str]:
    """Names that a body, nested ones included, reads from outside of it."""
    outer: set[str] = set()
    known = {tensor.name for tensor in graph.initializer}
    known.update(tensor.values.name for tensor in graph.sparse_initializer)
    known.update(value.name for value in graph.input)
    for inner in graph.node:
        outer.update(name for name in reads(inner) if name not in known)
        known.update(inner.output)
    outer.update(value.name for value in graph.output if value.name not in known)
    return outer


def reads(node: NodeProto) -> list[str]:
    """Tensors that a node reads, by its inputs first and then by its bodies, each once."""
    own = dict.fromkeys(node.input)
    own.pop("", None)
    return [*dict.fromkeys((*own, *sorted(captured(node))))] if has_bodies(node) else [*own]


def constant(index: Index, name: str) -> np.ndarray | None:
    """Value of an initializer as a fresh array, or None for any other tensor."""
    tensor = index.initializers.get(name)
    return None if tensor is None else read_values(tensor)


def known_constant(index: Index, name: str) -> np.ndarray:
    """Value of a tensor that the caller knows to be an initializer, as a fresh array; raises KeyError for others."""
    return read_values(index.initializers[name])


def own_constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The graph's initializers, and what its Constant nodes give as one tensor, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = attribute_of(node, "value", None) if is_op(node, "Constant") else None
        if value is not None:
            found[node.output[0]] = value
    return found


def in_scope(graph: GraphProto, outer: Mapping[str, Value], own: Mapping[str, Value]) -> dict[str, Value]:
    """What is known by name inside a body: ``own``, and what is known outside of names that the body does not reuse."""
    bound = {value.name for value in graph.input}.union(*(node.output for node in graph.node))
    return {**{name: value for name, value in outer.items() if name not in bound}, **own}


def is_op(node: NodeProto, *kinds: str) -> bool:
    """Whether the node is one of these standard operators."""
    return not node.domain and node.op_type in kinds


# What an attribute holds is for the operator to say, so that without a default its type is unknown.
@overload
def attribute_of(node: NodeProto, name: str, default: None) -> Any: ...
@overload
def attribute_of(node: NodeProto, name: str, default: Value) -> Value: ...
def attribute_of(node: NodeProto, name: str, default: Any) -> Any:
    """Value of the node's attribute, or the default where it is left out."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)
