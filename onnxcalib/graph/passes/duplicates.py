"""Compute once what several nodes compute alike."""

from __future__ import annotations

from collections.abc import Hashable

from onnx import ModelProto, NodeProto

from ..edit import remove_nodes
from ..index import Index, captured, constant, subgraphs
from ..ops import LAYERS, RANDOM_OPS

# Constants of so many values at most are compared by value, as exporters write one for each node; others by name.
MOST_VALUES = 16


def merge_duplicates(model: ModelProto) -> int:
    """Let the first of several nodes with the same operator, operands and attributes stand for all; returns the count.

    A second Relu of a layer, the same as the first, would keep onnxruntime from running either as part of the layer.
    Layers stay, as each has bits of its own; so do random operators, nodes with bodies or of other domains, and those
    whose outputs are the graph's or are captured by a body. Nodes are told apart by name, so each needs its own.
    """
    index = Index(model.graph)
    kept_names = set(index.outputs).union(*(captured(node) for node in model.graph.node))
    first: dict[Hashable, NodeProto] = {}
    renamed: dict[str, str] = {}
    spent = []
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        if node.domain or node.op_type in RANDOM_OPS + LAYERS or any(True for _ in subgraphs(node)):
            continue
        twin = first.setdefault(_describe(index, node), node)
        if twin is not node and kept_names.isdisjoint(node.output):
            renamed.update(zip(node.output, twin.output, strict=True))
            renamed.pop("", None)
            spent.append(node.name)
    remove_nodes(model, spent)
    return len(spent)


def _describe(index: Index, node: NodeProto) -> Hashable:
    """What makes two nodes the same: operator, operands, attributes, and which outputs are asked for."""
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    operands = tuple(_describe_operand(index, name) for name in node.input)
    return node.op_type, operands, tuple(attributes), tuple(map(bool, node.output))


def _describe_operand(index: Index, name: str) -> Hashable:
    value = constant(index, name) if name in index.initializers and _is_small(index, name) else None
    return name if value is None else (value.dtype.str, value.shape, value.tobytes())


def _is_small(index: Index, name: str) -> bool:
    tensor = index.initializers[name]
    return len(tensor.dims) <= 1 and all(size <= MOST_VALUES for size in tensor.dims)
