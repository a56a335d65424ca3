"""Cut a graph into segments that run one after the other, so that the weights of one segment alone are held."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from .edit import rename, take_name
from .index import all_graphs, has_bodies, is_op, reads, subgraphs
from .ops import DEQUANTIZE, QUANTIZE, RANDOM_OPS
from .values import count_bytes


@dataclass(frozen=True)
class Segment:
    """Nodes of a graph by position, what they read of the segments before, and what they give to those behind."""

    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def count_weights(model: ModelProto) -> int:
    """Bytes of the values of all initializers, those of bodies included."""
    return sum(count_bytes(tensor) for graph in all_graphs(model.graph) for tensor in graph.initializer)


def find_segments(
    model: ModelProto, outputs: Sequence[str], most_bytes: int, *, whole: Collection[str] = ()
) -> list[Segment]:
    """Segments whose weights take at most ``most_bytes`` each, or are one node's; together they give ``outputs``.

    The nodes must be in topological order. What constants alone make, and a DequantizeLinear, is repeated in every
    segment that reads it. A cut goes through as few tensors as can be, in quantized models through integers that a
    QuantizeLinear gives, which leaves every operator with its Q and DQ. No cut goes through the tensors ``whole``.
    """
    return _Cutting(model.graph, outputs, whole).run(most_bytes)


def take_segment(model: ModelProto, segment: Segment, types: Mapping[str, ValueInfoProto]) -> ModelProto:
    """The segment as a model of its own, with the initializers that it reads; ``types`` describes its inputs.

    Its outputs are those of the model that it makes; what else later segments read is left for the caller to ask for.
    """
    graph, nodes = model.graph, [model.graph.node[position] for position in segment.nodes]
    declared = {value.name: value for value in graph.output}
    wanted = {tensor for node in nodes for tensor in reads(node)}.union(segment.outputs)
    made = helper.make_model(
        helper.make_graph(
            nodes,
            graph.name or "segment",
            [types[tensor] for tensor in segment.inputs],
            [declared[tensor] for tensor in segment.outputs if tensor in declared],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
        functions=model.functions,
    )
    made.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in wanted)
    return made


def join_segments(graphs: Sequence[GraphProto]) -> GraphProto:
    """One graph of those that segments have become; what two of them name alike has another name in the second.

    A DequantizeLinear that they share is there once. The graphs are changed.
    """
    whole = GraphProto()
    between = {value.name for graph in graphs for value in (*graph.input, *graph.output)}
    taken, shared = set(between), dict[tuple[str, str], str]()
    for graph in graphs:
        own = {value.name for value in (*graph.input, *graph.output)}
        made = [tensor.name for tensor in graph.initializer] + [t for node in graph.node for t in node.output if t]
        names: dict[str, str] = {}
        for node in graph.node:
            if is_op(node, DEQUANTIZE):
                key = node.name, node.output[0]
                if key in shared and node.output[0] not in own:
                    names[node.output[0]] = shared[key]
                    node.op_type = ""  # left out
        names |= {name: take_name(name, taken) for name in made if name not in own and name not in names}
        for tensor in graph.initializer:
            tensor.name = names.get(tensor.name, tensor.name)
        whole.initializer.extend(graph.initializer)
        kept = [node for node in graph.node if node.op_type]
        shared.update({(node.name, node.output[0]): names.get(node.output[0], node.output[0]) for node in kept})
        rename(graph, names)
        whole.node.extend(kept)
    return whole


class _Cutting:
    """One graph on the way to its segments.

    core: positions of the nodes that run once, in order; all others are repeated where they are read. made: tensor of a
    core node -> its rank among these. read: for each core node, the tensors of other core nodes that it needs. helpers:
    for each, the repeated nodes that it needs. weights: for each, the initializers, of which ``sizes`` has the bytes.
    """

    def __init__(self, graph: GraphProto, outputs: Sequence[str], whole: Collection[str]) -> None:
        self.graph, self.wanted, self.whole = graph, list(dict.fromkeys(outputs)), set(whole)
        self.sizes = {tensor.name: count_bytes(tensor) for tensor in graph.initializer}
        self.given = [value.name for value in graph.input if value.name not in self.sizes]
        repeated = self._find_repeated()
        self.core = [position for position in range(len(graph.node)) if position not in repeated]
        self.made = {t: rank for rank, at in enumerate(self.core) for t in graph.node[at].output if t}
        makers = {tensor: at for at in repeated for tensor in graph.node[at].output if tensor}
        found = [self._trace(reads(graph.node[at]), makers) for at in self.core]
        self.read = [read for read, _, _ in found]
        self.helpers = [helpers for _, helpers, _ in found]
        self.weights = [weights for _, _, weights in found]
        self.inside = [_count_inside(graph.node[at]) for at in self.core]
        self.last = {tensor: rank for rank, tensors in enumerate(self.read) for tensor in tensors}
        self.quantized = {t for at in self.core if is_op(graph.node[at], QUANTIZE) for t in graph.node[at].output}
        self.makers = makers

    def _find_repeated(self) -> set[int]:
        """Positions of the nodes that cost little or follow from constants, but for those that give outputs."""
        constant, repeated = set(self.sizes), set[int]()
        for position, node in enumerate(self.graph.node):
            needs = reads(node)
            follows = constant.issuperset(needs) and (needs or is_op(node, "Constant"))
            follows = follows and not has_bodies(node) and node.op_type not in RANDOM_OPS
            if follows:
                constant.update(node.output)
            if (follows or is_op(node, DEQUANTIZE)) and not set(self.wanted).intersection(node.output):
                repeated.add(position)
        return repeated

    def _trace(self, tensors: Iterable[str], makers: Mapping[str, int]) -> tuple[set[str], set[int], set[str]]:
        """The tensors of core nodes or inputs, the repeated nodes, and the initializers behind some tensors."""
        waiting, read, helpers, weights = list(tensors), set[str](), set[int](), set[str]()
        while waiting:
            tensor = waiting.pop()
            if tensor in makers:
                if makers[tensor] not in helpers:
                    helpers.add(makers[tensor])
                    waiting += reads(self.graph.node[makers[tensor]])
            else:
                (weights if tensor in self.sizes else read).add(tensor)
        return read, helpers, weights

    def run(self, most_bytes: int) -> list[Segment]:
        bounds, start, held, own = [0], 0, set[str](), [0]
        while start + len(own) <= len(self.core):
            rank = start + len(own) - 1
            new = self.weights[rank] - held
            size = own[-1] + self.inside[rank] + sum(map(self.sizes.__getitem__, new))
            cut = self._choose(start, own, most_bytes) if size > max(most_bytes, own[-1]) else None
            if cut is None:
                held, own = held | new, [*own, size]
            else:
                bounds.append(cut)
                start, held, own = cut, set(), [0]
        bounds.append(len(self.core))
        segments = [self._describe(*ends) for ends in pairwise(bounds)]
        return [segment for segment in segments if segment.outputs]

    def _choose(self, start: int, own: Sequence[int], most_bytes: int) -> int | None:
        """The rank in front of which to cut, the last of the best; None where none can be.

        own: the bytes of the weights that a segment from ``start`` has in front of each rank. Half of the most are
        looked for, as a graph may have the fewest tensors at its very beginning.
        """
        found: list[tuple[bool, int, int, int]] = []
        crossing = {tensor for tensor, made in self.made.items() if made < start <= self.last.get(tensor, -1)}
        for rank in range(start + 1, start + len(own)):
            crossing.update(self.graph.node[self.core[rank - 1]].output)
            crossing = {tensor for tensor in crossing if self.last.get(tensor, -1) >= rank}
            if own[rank - start] and self.whole.isdisjoint(crossing):
                unlike = sum(bool(self.quantized) and tensor not in self.quantized for tensor in crossing)
                found.append((2 * own[rank - start] < most_bytes, unlike, len(crossing), -rank))
        return -min(found)[-1] if found else None

    def _describe(self, start: int, end: int) -> Segment:
        ranks = range(start, end)
        needed = dict.fromkeys(tensor for rank in ranks for tensor in sorted(self.read[rank]))
        inputs = [tensor for tensor in needed if tensor not in self.made or self.made[tensor] < start]
        own = [tensor for tensor, rank in self.made.items() if start <= rank < end]
        outputs = [t for t in own if t in self.wanted or self.last.get(t, -1) >= end]
        if start == 0:  # constants that are outputs themselves
            outputs += [tensor for tensor in self.wanted if tensor in self.sizes]
        nodes = {self.core[rank] for rank in ranks}.union(*(self.helpers[rank] for rank in ranks))
        return Segment(tuple(sorted(nodes)), tuple(inputs), tuple(outputs))


def _count_inside(node: NodeProto) -> int:
    """Bytes of the initializers in a node's bodies."""
    bodies = (graph for body in subgraphs(node) for graph in all_graphs(body))
    return sum(count_bytes(tensor) for graph in bodies for tensor in graph.initializer)
