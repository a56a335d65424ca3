"""Partition the graph into blocks: residual blocks with their add, single layers elsewhere, the rest between them.

A residual block is found from structure: the nodes between an Add and the nearest tensor through which all its inputs
come (its immediate dominator). Such a region has one entry, so that regions and single nodes always have an order.
Where something else comes in, as the mask of attention does, it is the nodes on the ways from one operand of the Add to
the other, as long as that leaves an order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto

from ..spec import Block, QuantScheme
from .index import Index, is_op, reads
from .ops import ACTIVATIONS

# A region with more layers than this is no residual block but a long skip: its layers are taken one by one.
MOST_LAYERS = 6
# Dominates every tensor; no tensor has this name.
ENTRY = ""


def find_blocks(model: ModelProto, scheme: QuantScheme) -> tuple[Block, ...]:
    """Blocks that cover every node, in an order in which each reads only what blocks before it (or the graph) give."""
    graph, index = model.graph, Index(model.graph)
    layers = {layer.name for layer in scheme.layers}
    owner = _residual_regions(graph, index, layers)
    _own_layers(graph, index, owner, layers)
    groups = _ordered_groups(graph, index, owner)
    return tuple(_cut(graph, index, names, layers) for names in _merge_glue(groups, layers))


def single_layers(model: ModelProto, scheme: QuantScheme, block: Block) -> tuple[Block, ...]:
    """The block taken apart into one block a layer, what lies between them as blocks of no layers."""
    graph, index = model.graph, Index(model.graph)
    layers = {layer.name for layer in scheme.layers}
    inside = set(block.nodes)
    owner = {node.name: node.name for node in graph.node if node.name not in inside}
    _own_layers(graph, index, owner, layers)
    groups = [names for names in _ordered_groups(graph, index, owner) if inside.issuperset(names)]
    return tuple(_cut(graph, index, names, layers) for names in _merge_glue(groups, layers))


def join_blocks(model: ModelProto, scheme: QuantScheme, blocks: Iterable[Block]) -> Block:
    """Neighbouring blocks as one."""
    names = [name for block in blocks for name in block.nodes]
    return _cut(model.graph, Index(model.graph), names, {layer.name for layer in scheme.layers})


def _own_layers(graph: GraphProto, index: Index, owner: dict[str, str], layers: set[str]) -> None:
    """Make every layer without an owner its own and its activation function's; other nodes are on their own."""
    for node in graph.node:
        if node.name in layers and node.name not in owner:
            owner |= dict.fromkeys((node.name, *_activation_after(index, node, owner, layers)), node.name)
    for node in graph.node:
        owner.setdefault(node.name, node.name)


def _dominators(graph: GraphProto, index: Index) -> dict[str, str]:
    """Immediate dominator of every tensor among tensors; ENTRY dominates the graph's inputs and what has none."""
    depth = {ENTRY: 0}
    parent = {ENTRY: ENTRY}

    def meet(a: str, b: str) -> str:
        while a != b:
            if depth[a] < depth[b]:
                a, b = b, a
            a = parent[a]
        return a

    for tensor in index.inputs:
        parent[tensor], depth[tensor] = ENTRY, 1
    for node in graph.node:
        sources = [t for t in reads(node) if t in depth]
        common = sources[0] if sources else ENTRY
        for t in sources[1:]:
            common = meet(common, t)
        for t in filter(None, node.output):
            parent[t], depth[t] = common, depth[common] + 1
    return parent


def _residual_regions(graph: GraphProto, index: Index, layers: set[str]) -> dict[str, str]:
    """Owner (the Add's name) of every node inside a residual block."""
    parent = _dominators(graph, index)
    owner: dict[str, str] = {}
    for node in graph.node:
        if not is_op(node, "Add") or any(t in index.initializers for t in node.input):
            continue
        entry = parent[node.output[0]]
        regions = [] if entry == ENTRY else [_between(index, entry, node)]
        regions += _ways(graph, index, node)
        for region in regions:
            count = sum(name in layers for name in region)
            if (
                1 <= count <= MOST_LAYERS
                and owner.keys().isdisjoint(region)
                and _has_order(graph, index, owner, region)
            ):
                after = _activation_after(index, node, {**owner, **dict.fromkeys(region, "")}, layers)
                owner |= dict.fromkeys((*region, *after), node.name)
                break
    return owner


def _ways(graph: GraphProto, index: Index, join: NodeProto) -> list[set[str]]:
    """Names of the nodes on all ways from one operand of ``join`` to the other, ``join`` included; none or one set."""
    found = []
    for place, entry in enumerate(join.input):
        region, made = set(), {entry}
        behind = _between(index, entry, join)
        for node in graph.node:
            if node.name in behind and not made.isdisjoint(reads(node)):
                region.add(node.name)
                made.update(node.output)
        if join.input[1 - place] in made - {entry}:
            found.append(region)
    return found


def _has_order(graph: GraphProto, index: Index, owner: dict[str, str], region: set[str]) -> bool:
    """Whether no other group of nodes stands between two nodes of the region, at however many removes."""
    group = {n.name: owner.get(n.name, n.name) for n in graph.node} | dict.fromkeys(region, ENTRY)
    read: dict[str, set[str]] = {}
    for node in graph.node:
        sources = {group[index.producer[t].name] for t in reads(node) if t in index.producer}
        read.setdefault(group[node.name], set()).update(sources - {group[node.name]})
    seen, stack = set(), list(read[ENTRY])
    while stack:
        name = stack.pop()
        if name == ENTRY:
            return False
        if name not in seen:
            seen.add(name)
            stack.extend(read[name])
    return True


def _between(index: Index, entry: str, join: NodeProto) -> set[str]:
    """Names of the nodes from which ``join`` is reached without passing ``entry``, itself included."""
    region, stack = {join.name}, list(join.input)
    while stack:
        tensor = stack.pop()
        node = index.producer.get(tensor)
        if tensor == entry or node is None or node.name in region:
            continue
        region.add(node.name)
        stack.extend(reads(node))
    return region


def _activation_after(index: Index, node: NodeProto, owner: dict[str, str], layers: set[str]) -> list[str]:
    """Names of the activation function behind a node: elementwise nodes that read its output, each other, constants."""
    names: list[str] = []
    made = set(node.output)
    frontier = list(node.output)
    while frontier:
        for reader in index.readers(frontier.pop()):
            free = not (reader.name in layers or reader.name in owner or reader.name in names)
            if free and is_op(reader, *ACTIVATIONS) and made.issuperset(set(reads(reader)) - set(index.initializers)):
                names.append(reader.name)
                made.update(reader.output)
                frontier.extend(reader.output)
    return names


@dataclass
class _Group:
    nodes: list[str] = field(default_factory=list)
    waits: set[str] = field(default_factory=set)


def _ordered_groups(graph: GraphProto, index: Index, owner: dict[str, str]) -> list[list[str]]:
    """Groups of nodes of one owner, in topological order of the groups, the graph's own order deciding ties."""
    groups: dict[str, _Group] = {}
    for node in graph.node:
        group = groups.setdefault(owner[node.name], _Group())
        group.nodes.append(node.name)
        sources = {owner[index.producer[t].name] for t in reads(node) if t in index.producer}
        group.waits |= sources - {owner[node.name]}
    done: set[str] = set()
    ordered: list[list[str]] = []
    waiting = list(groups)
    while waiting:
        ready = next((name for name in waiting if groups[name].waits <= done), None)
        assert ready is not None, "groups wait for each other"
        waiting.remove(ready)
        done.add(ready)
        ordered.append(groups[ready].nodes)
    return ordered


def _merge_glue(groups: Iterable[list[str]], layers: set[str]) -> list[list[str]]:
    """Join neighbouring groups without a layer."""
    merged: list[list[str]] = []
    glue = False
    for names in groups:
        is_glue = not any(name in layers for name in names)
        if is_glue and glue:
            merged[-1] += names
        else:
            merged.append(list(names))
        glue = is_glue
    return merged


def _cut(graph: GraphProto, index: Index, names: list[str], layers: set[str]) -> Block:
    inside = set(names)
    nodes = [n for n in graph.node if n.name in inside]
    made = {t for n in nodes for t in n.output if t}
    inputs = dict.fromkeys(t for n in nodes for t in reads(n) if t not in made and t not in index.initializers)
    outputs = [
        t
        for n in nodes
        for t in n.output
        if t and (t in index.outputs or any(c.name not in inside for c in index.readers(t)))
    ]
    own = tuple(n.name for n in nodes if n.name in layers)
    return Block(own[-1] if own else nodes[0].name, tuple(n.name for n in nodes), tuple(inputs), tuple(outputs), own)
