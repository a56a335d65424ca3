"""Give a node a constant operand of its own, without touching what other nodes read."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, numpy_helper

from .index import Index
from .normalise import unused_name


def write_operand(graph: GraphProto, index: Index, node: NodeProto, place: int, value: np.ndarray) -> None:
    """Make ``value`` the constant that the node reads as input ``place``.

    The initializer there is overwritten if this node alone reads it, once; else a new one is added and the index kept
    true to it. Nodes are told apart by name, so each needs its own.
    """
    old = node.input[place] if place < len(node.input) else ""
    tensor = index.initializers.get(old)
    readers = [reader.name for reader in index.readers(old)]
    alone = readers == [node.name] and list(node.input).count(old) == 1 and old not in index.outputs
    if tensor is not None and alone:
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), old))
        return
    taken = set(index.initializers) | set(index.producer) | set(index.inputs)
    name = unused_name(f"{node.name}.{old}" if old else f"{node.input[1]}_bias", taken)
    while len(node.input) <= place:
        node.input.append("")
    node.input[place] = name
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    index.initializers[name] = graph.initializer[-1]
    index.consumers[name] = [node]
    if old and old not in node.input:
        index.consumers[old] = [reader for reader in index.readers(old) if reader.name != node.name]
