"""What a graph still needs once a part of it has been computed."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from .index import Index, reads


def find_live(model: ModelProto, tensors: Sequence[str], *, index: Index | None = None) -> dict[str, tuple[str, ...]]:
    """For each tensor: itself and the others that nodes behind it, or the outputs, read from its producer or before.

    Initializers are left out. The nodes must be in topological order; tensors that no node makes are left out. One call
    for many tensors goes through the graph once. index: that of the model's graph, if the caller has it.
    """
    index = index or Index(model.graph)
    end = len(model.graph.node)
    last_read = {tensor: position for position, node in enumerate(model.graph.node) for tensor in reads(node)}
    last_read.update(dict.fromkeys(index.outputs, end))
    asked = set(tensors).intersection(index.producer)
    found: dict[str, tuple[str, ...]] = {}
    alive = dict.fromkeys(tensor for tensor in index.inputs if tensor in last_read)
    for position, node in enumerate(model.graph.node):
        for tensor in reads(node):
            if last_read[tensor] == position:
                alive.pop(tensor, None)
        made = [tensor for tensor in node.output if tensor]
        alive.update(dict.fromkeys(tensor for tensor in made if tensor in last_read))
        if not asked.isdisjoint(made):
            found.update(dict.fromkeys(made, tuple(alive)))
    return {tensor: found[tensor] for tensor in tensors if tensor in found}
