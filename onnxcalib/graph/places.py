"""Find pools that also give the places of their largest values, which grids would make ties of."""

from __future__ import annotations

from onnx import GraphProto, NodeProto

from .fusion import rectified
from .index import Index, is_op
from .ops import LAYERS

POOLED = "it gives the places of largest values, and of values that are close 256 levels make equal ones"
IN_FRONT = "a pool behind it gives the places of largest values; 256 levels make equal ones of those that are close"


def find_placing(graph: GraphProto, index: Index) -> dict[str, str]:
    """Maps each MaxPool whose indices are read, and a layer that alone it reads, to why they stay in float.

    Without the layer, which gives integers to onnxruntime, its values would be rounded all the same.
    """
    found = {}
    for node in graph.node:
        if is_op(node, "MaxPool") and _gives_places(index, node):
            found[node.name] = POOLED
            layer = _layer_in_front(index, node)
            if layer is not None:
                found[layer.name] = IN_FRONT
    return found


def _gives_places(index: Index, node: NodeProto) -> bool:
    return len(node.output) > 1 and bool(index.readers(node.output[1]) or node.output[1] in index.outputs)


def _layer_in_front(index: Index, node: NodeProto) -> NodeProto | None:
    """The layer whose output, or the Relu or Clip behind it, the node alone reads."""
    before = index.producer.get(node.input[0])
    if before is not None and is_op(before, "Relu", "Clip") and rectified(index, before.input[0]) == node.input[0]:
        before = index.producer.get(before.input[0])
    alone = len(index.readers(node.input[0])) == 1 and node.input[0] not in index.outputs
    return before if before is not None and alone and is_op(before, *LAYERS) else None
