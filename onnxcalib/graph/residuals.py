"""Find the residual blocks of a graph: the nodes between an Add and the tensor that reaches both its operands.

Each Add has two candidates. The first holds all nodes between the Add and its immediate dominator, the nearest tensor
through which all its operands come. Nothing else enters these nodes, so that they can always be run as one. Where
something else does come in, as the mask of attention, the second candidate holds the nodes on the paths from one
operand to the other. It is taken only if no other block has to run between two of its nodes.

Nodes must be in topological order, and each needs a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from onnx import GraphProto, NodeProto

from .index import Index, is_op, reads
from .ops import ACTIVATIONS

# A candidate with more layers than this is no residual block but a long skip: its layers are taken one by one.
MOST_LAYERS = 6
# Dominates every tensor; no tensor has this name.
ENTRY = ""


def find_residuals(graph: GraphProto, index: Index, layers: Collection[str]) -> dict[str, str]:
    """Name of the Add for each node of a residual block, to which the activation function behind the Add belongs."""
    finder = _Finder(graph, index, layers)
    for position, node in enumerate(graph.node):
        finder.follow(position, node)
        if node.name in finder.operands and node.name not in finder.owner:
            finder.claim(position, node)
    return finder.owner


def activation_after(index: Index, node: NodeProto, is_free: Callable[[str], bool]) -> set[str]:
    """Names of the activation function behind a node: elementwise nodes that read its output, each other, constants.

    is_free: whether the node of a name may become a part of it.
    """
    names: set[str] = set()
    made = set(node.output)
    frontier = list(node.output)
    while frontier:
        for reader in index.readers(frontier.pop()):
            if reader.name in names or not is_op(reader, *ACTIVATIONS) or not is_free(reader.name):
                continue
            if all(tensor in made or tensor in index.initializers for tensor in reads(reader)):
                names.add(reader.name)
                made.update(reader.output)
                frontier.extend(reader.output)
    return names


class _Finder:
    """Goes through a graph once. ``owner``: node -> the Add of its residual block, as far as the graph was followed."""

    def __init__(self, graph: GraphProto, index: Index, layers: Collection[str]) -> None:
        self.index, self.layers = index, layers
        self.owner: dict[str, str] = {}
        self.members: dict[str, list[str]] = {}
        self.dominators = _Dominators(index.inputs)
        # Tensor -> position of its producer, and of the last layer among the producer and what that depends on.
        self.made_at = {tensor: position for position, node in enumerate(graph.node) for tensor in node.output}
        self.last_layer: dict[str, int] = {}
        # Add of two activations -> its operands, the one that is made first in front.
        self.operands: dict[str, tuple[str, str]] = {}
        # First operand of an Add -> position of the last Add of which it is the first operand.
        self.last_add: dict[str, int] = {}
        # Tensor -> the first operands from which it is computed. Each is left out behind its last Add, so that the sets
        # stay small.
        self.origins: dict[str, frozenset[str]] = {}
        for position, node in enumerate(graph.node):
            if is_op(node, "Add") and index.initializers.keys().isdisjoint(node.input):
                first, second = sorted(node.input, key=lambda tensor: self.made_at.get(tensor, -1))
                self.operands[node.name] = first, second
                self.last_add[first] = position

    def follow(self, position: int, node: NodeProto) -> None:
        """Learn where the node's outputs come from."""
        sources = reads(node)
        self.dominators.add(node.output, sources)
        last = max((self.last_layer.get(tensor, -1) for tensor in sources), default=-1)
        origins = {tensor for tensor in sources if tensor in self.last_add}
        origins.update(*(self.origins.get(tensor, ()) for tensor in sources))
        needed = frozenset(tensor for tensor in origins if self.last_add[tensor] > position)
        for tensor in node.output:
            self.last_layer[tensor] = position if node.name in self.layers else last
            self.origins[tensor] = needed

    def claim(self, position: int, join: NodeProto) -> None:
        """Make the Add the owner of its residual block, if it has one whose nodes have no owner yet."""
        entry = self.dominators.parent[join.output[0]]
        first, second = self.operands[join.name]
        region = None
        if entry != ENTRY:
            if self.last_layer[join.output[0]] <= self.made_at.get(entry, -1):
                return  # neither candidate has a layer, as the second is a part of the first
            region = self._collect(join, lambda tensor: tensor != entry)
        if region is None and first != entry and first in self.origins.get(second, ()):
            region = self._collect(join, lambda tensor: first in self.origins.get(tensor, ()))
            if region is not None and self._is_interrupted(region, position):
                return
        if region is not None:
            self._own(join, region)
            after = activation_after(self.index, join, lambda name: name not in self.layers and name not in self.owner)
            self._own(join, after)

    def _own(self, join: NodeProto, names: Iterable[str]) -> None:
        self.owner.update(dict.fromkeys(names, join.name))
        self.members.setdefault(join.name, []).extend(names)

    def _collect(self, join: NodeProto, is_inside: Callable[[str], bool]) -> set[str] | None:
        """Names of the Add and of the nodes that make the tensors inside from which it is computed.

        None where these have no layer or more than MOST_LAYERS, or where another block owns one of them.
        """
        region, stack, count = {join.name}, list(join.input), 0
        while stack:
            tensor = stack.pop()
            node = self.index.producer.get(tensor)
            if node is None or node.name in region or not is_inside(tensor):
                continue
            count += node.name in self.layers
            if count > MOST_LAYERS or node.name in self.owner:
                return None
            region.add(node.name)
            stack.extend(reads(node))
        return region if count else None

    def _is_interrupted(self, region: set[str], end: int) -> bool:
        """Whether the region would have to run both before and after another block.

        Nodes outside of the region count as one with the others of their block. end: position of the region's last
        node. Nodes behind it need not be looked at: of other blocks only activation functions stand there, which read
        nothing but their own block.
        """
        nodes = self.index.nodes
        stack = [nodes[name] for name in region]
        seen: set[str] = set()
        while stack:
            node = stack.pop()
            for reader in (reader for tensor in node.output for reader in self.index.readers(tensor)):
                if reader.name in region:
                    if node.name not in region:
                        return True
                elif reader.name not in seen and self.index.position[reader.name] < end:
                    joined = self.members.get(self.owner.get(reader.name, ""), [reader.name])
                    seen.update(joined)
                    stack.extend(nodes[name] for name in joined)
        return False


class _Dominators:
    """Immediate dominator of every tensor among tensors; ENTRY dominates the graph's inputs and what has none.

    Nearest common dominators are found in O(log depth): ``jump`` leads to a dominator far above, at distances of which
    neighbours in the tree share most (Myers, "An applicative random-access stack", 1983).
    """

    def __init__(self, inputs: Iterable[str]) -> None:
        self.parent = {ENTRY: ENTRY}
        self.depth = {ENTRY: 0}
        self.jump = {ENTRY: ENTRY}
        self.add(inputs, ())

    def add(self, tensors: Iterable[str], sources: Iterable[str]) -> None:
        """Enter tensors that are computed from ``sources``, of which those that nothing known makes do not count."""
        known = [tensor for tensor in sources if tensor in self.depth]
        common = known[0] if known else ENTRY
        for tensor in known[1:]:
            common = self._meet(common, tensor)
        high = self.jump[common]
        far = self.jump[high]
        even = self.depth[common] - self.depth[high] == self.depth[high] - self.depth[far]
        for tensor in filter(None, tensors):
            self.parent[tensor], self.depth[tensor] = common, self.depth[common] + 1
            self.jump[tensor] = far if even else common

    def _meet(self, one: str, other: str) -> str:
        """The nearest tensor that dominates both, or is one of them and dominates the other."""
        if self.depth[one] < self.depth[other]:
            one, other = other, one
        while self.depth[one] > self.depth[other]:
            high = self.jump[one]
            one = high if self.depth[high] >= self.depth[other] else self.parent[one]
        while one != other:
            if self.jump[one] != self.jump[other]:
                one, other = self.jump[one], self.jump[other]
            else:
                one, other = self.parent[one], self.parent[other]
        return one
