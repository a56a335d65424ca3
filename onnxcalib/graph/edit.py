"""The edits of which every rewrite is made: rename, reroute, remove, and give a node a constant of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, numpy_helper

from .index import Index, reads, subgraphs


def unused_name(name: str, taken: Iterable[str]) -> str:
    """The name itself, or with the first number behind it that is in none of ``taken``."""
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors in nodes, and in their bodies where these do not make one of the same name."""
    for node in graph.node:
        for field in (node.input, node.output):
            for place, name in enumerate(field):
                if name in names:
                    field[place] = names[name]
        for body in subgraphs(node):
            made = {name for inner in body.node for name in inner.output}
            own = made.union((value.name for value in body.input), (tensor.name for tensor in body.initializer))
            outer = {name: new for name, new in names.items() if name not in own}
            rename(body, outer)
            for value in body.output:
                value.name = outer.get(value.name, value.name)


def replace_name(names, old: str, new: str) -> None:
    """Put ``new`` in the place of ``old`` in a node's inputs or outputs."""
    for place, name in enumerate(names):
        if name == old:
            names[place] = new


def reroute(node: NodeProto, tensor: str, target: str) -> None:
    """Make the node, its subgraphs included, read ``target`` in place of ``tensor``."""
    replace_name(node.input, tensor, target)
    for body in subgraphs(node):
        for inner in body.node:
            reroute(inner, tensor, target)


def remove_nodes(model: ModelProto, names: Iterable[str]) -> None:
    """Remove nodes by name, whose outputs others have taken over, and what only they read."""
    gone = set(names)
    if not gone:
        return
    for place in reversed(range(len(model.graph.node))):
        if model.graph.node[place].name in gone:
            del model.graph.node[place]
    drop_stale_shapes(model.graph)
    drop_dead(model)


def drop_dead(model: ModelProto) -> int:
    """Remove nodes that no output depends on, and initializers that nobody reads."""
    graph = model.graph
    wanted = {value.name for value in graph.output}
    alive = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            alive.append(node)
            wanted.update(reads(node))
    count = len(graph.node) - len(alive)
    if count:
        refill(graph.node, alive[::-1])
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in wanted:
            del graph.initializer[place]
            count += 1
    if count:
        drop_stale_shapes(graph)
    return count


def drop_stale_shapes(graph: GraphProto) -> None:
    """Forget the recorded shapes of tensors that are no more, or that are recorded elsewhere too."""
    made = {name for node in graph.node for name in node.output}
    made -= {value.name for value in graph.output}
    kept: list[ValueInfoProto] = [value for value in graph.value_info if value.name in made]
    if len(kept) < len(graph.value_info):
        refill(graph.value_info, kept)


def refill(field, messages: list) -> None:
    """Replace a repeated field's content by messages that may be part of it."""
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(copies)


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
