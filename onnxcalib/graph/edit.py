"""The edits of which every rewrite is made: rename, reroute, remove, and give a node constants and attributes."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, MutableSequence, Sequence
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from .index import Index, reads, subgraphs
from .weight_file import make_tensor

AnyMessage = TypeVar("AnyMessage", bound=Message)


def copy_model(model: ModelProto) -> ModelProto:
    """A deep copy."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def unused_name(name: str, taken: Container[str]) -> str:
    """The name itself, or the first of ``name_1``, ``name_2`` and on that is not in ``taken``."""
    found, number = name, 0
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def take_name(name: str, taken: set[str]) -> str:
    """As ``unused_name``, and the name is taken from now on."""
    found = unused_name(name, taken)
    taken.add(found)
    return found


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename tensors in nodes, and in their bodies where these do not make one of the same name."""
    for node in graph.node:
        for field in (node.input, node.output):
            replace_names(field, names)
        for body in subgraphs(node):
            made = {name for inner in body.node for name in inner.output}
            own = made.union((value.name for value in body.input), (tensor.name for tensor in body.initializer))
            outer = {name: new for name, new in names.items() if name not in own}
            rename(body, outer)
            for value in body.output:
                value.name = outer.get(value.name, value.name)


def replace_names(field: MutableSequence[str], names: Mapping[str, str]) -> None:
    """Replace names, old -> new, in a node's inputs or outputs."""
    for number, name in enumerate(field):
        if name in names:
            field[number] = names[name]


def reroute(node: NodeProto, tensor: str, target: str) -> None:
    """Make the node, its bodies included, read ``target`` instead of ``tensor``."""
    replace_names(node.input, {tensor: target})
    for body in subgraphs(node):
        for inner in body.node:
            reroute(inner, tensor, target)


def remove_nodes(model: ModelProto, names: Iterable[str]) -> None:
    """Remove nodes by name, whose outputs other nodes make by now, and what nothing else reads."""
    gone = set(names)
    if not gone:
        return
    remove_at(model.graph.node, [i for i, node in enumerate(model.graph.node) if node.name in gone])
    drop_stale_shapes(model.graph)
    drop_dead(model)


def remove_at(field: MutableSequence[AnyMessage], positions: Iterable[int]) -> None:
    """Remove the messages at these positions, which ascend, from a repeated field."""
    for position in reversed(list(positions)):
        del field[position]


def drop_dead(model: ModelProto) -> int:
    """Remove nodes that no output depends on, and initializers that nothing reads; returns how many."""
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
    unread = [i for i, tensor in enumerate(graph.initializer) if tensor.name not in wanted]
    remove_at(graph.initializer, unread)
    count += len(unread)
    if count:
        drop_stale_shapes(graph)
    return count


def drop_stale_shapes(graph: GraphProto) -> None:
    """Remove the recorded shapes of tensors that nothing makes, or that are recorded elsewhere too."""
    made = {name for node in graph.node for name in node.output}
    made -= {value.name for value in graph.output}
    kept: list[ValueInfoProto] = [value for value in graph.value_info if value.name in made]
    if len(kept) < len(graph.value_info):
        refill(graph.value_info, kept)


def refill(field: MutableSequence[AnyMessage], messages: Sequence[AnyMessage]) -> None:
    """Replace a repeated field's content by messages, which may be some that it holds."""
    copies = [type(message).FromString(message.SerializeToString()) for message in messages]
    del field[:]
    field.extend(copies)


def write_attributes(
    node: NodeProto, values: Mapping[str, float | str | Sequence[int]], *, drop: Collection[str] = ()
) -> None:
    """Give a node these attributes behind those that it has of other names, without the ones to drop."""
    kept = [attribute for attribute in node.attribute if attribute.name not in {*drop, *values}]
    refill(node.attribute, [*kept, *(helper.make_attribute(name, value) for name, value in values.items())])


def add_constant(graph: GraphProto, name: str, value: np.ndarray | np.generic) -> str:
    """Add an initializer of this name; returns the name."""
    graph.initializer.append(make_tensor(name, value))
    return name


def write_operand(graph: GraphProto, index: Index, node: NodeProto, number: int, value: np.ndarray) -> None:
    """Make ``value`` the constant that the node reads as the input of this number.

    The initializer there is overwritten if this node alone reads it, once. Otherwise a new one is added, and the index
    brought up to date. Nodes are told apart by name, so each needs its own.
    """
    old = node.input[number] if number < len(node.input) else ""
    tensor = index.initializers.get(old)
    readers = [reader.name for reader in index.readers(old)]
    alone = readers == [node.name] and list(node.input).count(old) == 1 and old not in index.outputs
    if tensor is not None and alone:
        tensor.CopyFrom(make_tensor(old, value))
        return
    name = unused_name(f"{node.name}.{old}" if old else f"{node.input[1]}_bias", index)
    node.input.extend([""] * (number + 1 - len(node.input)))
    node.input[number] = add_constant(graph, name, value)
    index.initializers[name] = graph.initializer[-1]
    index.consumers[name] = [node]
    if old and old not in node.input:
        index.consumers[old] = [reader for reader in index.readers(old) if reader.name != node.name]
