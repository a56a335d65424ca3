"""Merge nodes that compute the same."""

from __future__ import annotations

from collections.abc import Hashable

from onnx import ModelProto, NodeProto

from ..edit import remove_nodes, replace_names
from ..index import Index, captured, has_bodies, known_constant
from ..ops import LAYERS, RANDOM_OPS
from ..patterns import whole_nodes

# Constants of up to so many values are compared by value, as exporters write one for each node; others by name.
MOST_VALUES = 16


def merge_duplicates(model: ModelProto) -> int:
    """Keep the first of several nodes with the same operator, operands and attributes; returns how many went.

    A second Relu of a layer would keep onnxruntime from running either Relu as part of the layer. These nodes stay:
    layers, as each has bits of its own, random operators, nodes with bodies or of other domains, parts of functions
    that onnxruntime fuses, and nodes whose outputs are the graph's or are captured by a body. Each node needs a name of
    its own.
    """
    index = Index(model.graph)
    kept_names = set(index.outputs).union(*(captured(node) for node in model.graph.node))
    whole = whole_nodes(model)
    first: dict[Hashable, NodeProto] = {}
    renamed: dict[str, str] = {}
    merged = []
    for node in model.graph.node:
        if not renamed.keys().isdisjoint(node.input):
            replace_names(node.input, renamed)
        if node.domain or node.op_type in RANDOM_OPS + LAYERS or has_bodies(node) or node.name in whole:
            continue
        same = first.setdefault(_describe(index, node), node)
        if same is not node and kept_names.isdisjoint(node.output):
            renamed.update(zip(node.output, same.output, strict=True))
            renamed.pop("", None)
            merged.append(node.name)
    remove_nodes(model, merged)
    return len(merged)


def _describe(index: Index, node: NodeProto) -> Hashable:
    """What two nodes that compute the same have in common: operator, operands, attributes, and which outputs exist."""
    attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
    operands = tuple(_describe_operand(index, name) for name in node.input)
    return node.op_type, operands, tuple(attributes), tuple(map(bool, node.output))


def _describe_operand(index: Index, name: str) -> Hashable:
    if name not in index.initializers or not _is_small(index, name):
        return name
    value = known_constant(index, name)
    return value.dtype.str, value.shape, value.tobytes()


def _is_small(index: Index, name: str) -> bool:
    tensor = index.initializers[name]
    return len(tensor.dims) <= 1 and all(size <= MOST_VALUES for size in tensor.dims)
