"""Partition the graph into blocks: residual blocks with their Add, single layers elsewhere, the rest between them."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping

from onnx import ModelProto, NodeProto

from ..spec import Block, QuantScheme
from .index import Index, reads
from .residuals import activation_after, find_residuals


def find_blocks(model: ModelProto, scheme: QuantScheme, *, index: Index | None = None) -> tuple[Block, ...]:
    """Blocks that cover every node, in an order in which each reads only what blocks before it (or the graph) give.

    index: that of the model's graph, if the caller has it. Nodes must be in topological order, and each needs a name of
    its own.
    """
    index = index or Index(model.graph)
    layers = {layer.name for layer in scheme.layers}
    owner = find_residuals(model.graph, index, layers)
    _own_layers(model.graph.node, index, owner, layers)
    groups = _order_groups(_group(model.graph.node, owner), index, owner)
    return tuple(_describe(index, names, layers) for names in _merge_without_layers(groups, layers))


def single_layers(
    model: ModelProto, scheme: QuantScheme, block: Block, *, index: Index | None = None
) -> tuple[Block, ...]:
    """The block taken apart into one block a layer, what lies between them as blocks of no layers.

    index: that of the model's graph, if the caller has it; other nodes than the block's are not looked at then.
    """
    index = index or Index(model.graph)
    nodes = [index.nodes[name] for name in sorted(block.nodes, key=index.position.__getitem__)]
    layers = {layer.name for layer in scheme.layers}.intersection(block.nodes)
    owner: dict[str, str] = {}
    _own_layers(nodes, index, owner, layers)
    # A layer's own nodes read only what it gives: in the order of the layers each group reads of those before it.
    groups = _group(nodes, owner).values()
    return tuple(_describe(index, names, layers) for names in _merge_without_layers(groups, layers))


def join_blocks(
    model: ModelProto, scheme: QuantScheme, blocks: Iterable[Block], *, index: Index | None = None
) -> Block:
    """Neighbouring blocks as one; ``index``: that of the model's graph, if the caller has it."""
    names = [name for block in blocks for name in block.nodes]
    return _describe(index or Index(model.graph), names, {layer.name for layer in scheme.layers})


def _own_layers(nodes: Collection[NodeProto], index: Index, owner: dict[str, str], layers: set[str]) -> None:
    """Make every layer without an owner its own and its activation function's; other nodes are on their own."""
    inside = {node.name for node in nodes}

    def is_free(name: str) -> bool:
        return name in inside and name not in layers and name not in owner

    for node in nodes:
        if node.name in layers and node.name not in owner:
            names = activation_after(index, node, is_free)
            owner.update(dict.fromkeys((node.name, *names), node.name))
    for node in nodes:
        owner.setdefault(node.name, node.name)


def _group(nodes: Iterable[NodeProto], owner: Mapping[str, str]) -> dict[str, list[str]]:
    """Owner -> its nodes' names, both in the order of the nodes."""
    groups: dict[str, list[str]] = {}
    for node in nodes:
        groups.setdefault(owner[node.name], []).append(node.name)
    return groups


def _order_groups(groups: dict[str, list[str]], index: Index, owner: Mapping[str, str]) -> list[list[str]]:
    """The groups in topological order. Among those that are ready, the one first in the graph comes next."""
    numbers = {name: number for number, name in enumerate(groups)}
    followers: dict[str, list[str]] = {name: [] for name in groups}
    waits_for: dict[str, int] = {}
    for group, names in groups.items():
        read = {tensor for name in names for tensor in reads(index.nodes[name]) if tensor in index.producer}
        sources = {owner[index.producer[tensor].name] for tensor in read} - {group}
        waits_for[group] = len(sources)
        for source in sources:
            followers[source].append(group)
    names_in_order = list(groups)
    ready = [numbers[group] for group in groups if not waits_for[group]]
    ordered = []
    while ready:
        group = names_in_order[heapq.heappop(ready)]
        ordered.append(groups[group])
        for follower in followers[group]:
            waits_for[follower] -= 1
            if not waits_for[follower]:
                heapq.heappush(ready, numbers[follower])
    assert len(ordered) == len(groups), "groups wait for each other"
    return ordered


def _merge_without_layers(groups: Iterable[list[str]], layers: Collection[str]) -> list[list[str]]:
    """Join neighbouring groups that have no layer."""
    merged: list[list[str]] = []
    bare = False
    for names in groups:
        was_bare, bare = bare, not any(name in layers for name in names)
        if bare and was_bare:
            merged[-1] += names
        else:
            merged.append(list(names))
    return merged


def _describe(index: Index, names: Iterable[str], layers: Collection[str]) -> Block:
    """The block of these nodes, named after its last layer or, without one, its first node."""
    ordered = sorted(names, key=index.position.__getitem__)
    inside, nodes = set(ordered), [index.nodes[name] for name in ordered]
    made = {tensor for node in nodes for tensor in node.output if tensor}
    read = dict.fromkeys(tensor for node in nodes for tensor in reads(node))
    outputs = [
        tensor
        for node in nodes
        for tensor in node.output
        if tensor and (tensor in index.outputs or any(reader.name not in inside for reader in index.readers(tensor)))
    ]
    own = tuple(name for name in ordered if name in layers)
    return Block(
        name=own[-1] if own else ordered[0],
        nodes=tuple(ordered),
        inputs=tuple(tensor for tensor in read if tensor not in made and tensor not in index.initializers),
        outputs=tuple(outputs),
        layers=own,
    )
