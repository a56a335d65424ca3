"""What a graph still needs once a part of it has been computed."""

from __future__ import annotations

from onnx import ModelProto

from .index import Index, reads


def find_live(model: ModelProto, tensors: list[str]) -> dict[str, tuple[str, ...]]:
    """For each tensor: itself and the others that nodes behind it, or the outputs, read from its producer or before.

    Initializers are left out. The nodes must be in topological order; tensors that no node makes are left out.
    """
    index = Index(model.graph)
    made = {name: -1 for name in index.inputs}
    last: dict[str, int] = {}
    for place, node in enumerate(model.graph.node):
        made.update({name: place for name in node.output if name})
        last.update({name: place for name in reads(node)})
    last.update({name: len(model.graph.node) for name in index.outputs})
    live = {}
    for tensor in tensors:
        if made.get(tensor, -1) >= 0:
            at = made[tensor]
            live[tensor] = tuple(t for t, place in made.items() if place <= at and last.get(t, -1) > at)
    return live
