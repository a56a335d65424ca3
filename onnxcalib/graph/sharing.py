"""Which tensors share a grid: both sides of a mover, of a Concat, and of operators that a target wants aligned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

from onnx import NodeProto

from .fusion import carried_outputs, data_inputs, moves_values
from .index import Index, is_op

Sets = tuple[tuple[str, ...], ...]


def share_grids(
    index: Index,
    nodes: Sequence[NodeProto],
    quantized: Sequence[str],
    nonnegative: Mapping[str, float],
    aligned: Collection[str],
    *,
    own: Collection[str] = (),
) -> tuple[Sets, dict[str, float]]:
    """Sets of tensors that have one grid, and those of ``nonnegative`` whose grid can be without negative values.

    nodes: those that are not left in float. aligned: operators whose inputs and outputs the target wants on one grid.
    Without them a Concat shares its grid with the inputs that it alone reads, where all have the same bound. own:
    tensors that do not join it, as they may have a grid that does not hold the others.
    """
    sets = _Sets(quantized, nonnegative)
    for node in nodes:
        if moves_values(index, node):
            sets.join([node.input[0], *carried_outputs(index, node)])
    for node in nodes:
        if is_op(node, *aligned):
            sets.join_all(data_inputs(node), carried_outputs(index, node))
        elif is_op(node, "Concat") and sets.hold([*node.input, *carried_outputs(index, node)]):
            _join_alike(sets, index, node, own)
    return sets.list(), sets.list_nonnegative(nonnegative)


def _join_alike(sets: _Sets, index: Index, node: NodeProto, own: Collection[str]) -> None:
    """A grid without negative values must not be shared by a tensor that has them, nor by one with another bound."""
    (output,) = carried_outputs(index, node)
    bounds = {sets.bound_of(t) for t in node.input}
    if len(bounds) == 1 and sets.bound_of(output) in {*bounds, None}:
        sets.join([output, *(t for t in node.input if t not in own and len(index.readers(t)) == 1)])


class _Sets:
    """Disjoint sets of tensors, each with the least upper bound of those of its tensors that have no negative values.

    A set is mixed if a node reads tensors with and without negative values in it, or with unlike bounds.
    """

    def __init__(self, tensors: Sequence[str], bounds: Mapping[str, float]) -> None:
        self._parent = {t: t for t in tensors}
        self._bounds = {t: bounds.get(t) for t in tensors}
        self._mixed: set[str] = set()

    def hold(self, tensors: Sequence[str]) -> bool:
        return self._parent.keys() >= set(tensors)

    def bound_of(self, tensor: str) -> float | None:
        return self._bounds[self._find(tensor)]

    def join(self, tensors: Sequence[str]) -> None:
        """Make one set of those of the tensors that have a grid."""
        held = [t for t in tensors if t in self._parent]
        for first, other in pairwise(held):
            a, b = self._find(first), self._find(other)
            if a != b:
                self._parent[b] = a
                known = [bound for bound in (self._bounds[a], self._bounds[b]) if bound is not None]
                self._bounds[a] = min(known, default=None)

    def join_all(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """The same of all that a node reads and gives, whatever their bounds."""
        held = [t for t in inputs if t in self._parent]
        if len({self.bound_of(t) for t in held}) > 1:
            self._mixed.update(held)
        self.join([*held, *outputs])

    def list_nonnegative(self, bounds: Mapping[str, float]) -> dict[str, float]:
        """Those of the bounds whose tensor lies in no mixed set."""
        mixed = {self._find(t) for t in self._mixed}
        return {t: bound for t, bound in bounds.items() if self._find(t) not in mixed}

    def list(self) -> Sets:
        """The sets of two tensors and more, in the order of the tensors."""
        found: dict[str, list[str]] = {}
        for t in self._parent:
            found.setdefault(self._find(t), []).append(t)
        return tuple(tuple(each) for each in found.values() if len(each) > 1)

    def _find(self, tensor: str) -> str:
        while self._parent[tensor] != tensor:
            tensor = self._parent[tensor]
        return tensor
