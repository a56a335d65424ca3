"""Concats whose parts are separated again: what they join needs no common grid.

A detector joins the logits of boxes and of classes in one tensor, to move both at once, and splits them again. On one
grid the range of one rounds the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from onnx import ModelProto, NodeProto

from .index import Index, attribute_of, constant, is_op
from .ops import SHAPE_READERS
from .shapes import Shape, infer_shapes

# Operators on the way from a Concat to what separates its parts again.
BETWEEN = ("Concat", "Reshape", "Transpose", "Split", "Slice")


def find_parted_joins(model: ModelProto, index: Index) -> set[str]:
    """Names of the Concats whose parts a Split or Slices take apart again, of those nodes, and of all nodes between."""
    found: set[str] = set()
    shapes: dict[str, Shape] = {}
    for node in model.graph.node:
        if is_op(node, "Concat") and node.name not in found and _may_part(index, node):
            shapes = shapes or infer_shapes(model)
            found |= _Follower(index, shapes).follow(node)
    return found


def _may_part(index: Index, node: NodeProto) -> bool:
    """Whether only such operators read the Concat as may stand in front of what separates its parts."""
    readers = [n for n in index.readers(node.output[0]) if not is_op(n, *SHAPE_READERS)]
    return bool(readers) and node.output[0] not in index.outputs and all(is_op(n, *BETWEEN) for n in readers)


class _Follower:
    """Follows the axis of one Concat forward."""

    def __init__(self, index: Index, shapes: Mapping[str, Shape]) -> None:
        self.index, self.shapes = index, shapes
        self.passed: set[str] = set()

    def follow(self, node: NodeProto) -> set[str]:
        """The nodes from the Concat to those that take its parts apart; none where some reader needs them together."""
        shape = self.shapes.get(node.output[0])
        if shape is None:
            return set()
        axis = attribute_of(node, "axis", 0) % len(shape)
        sizes = [self._size(tensor, axis) for tensor in node.input]
        if len(sizes) < 2 or None in sizes:
            return set()
        ends = set(accumulate(size for size in sizes[:-1] if size is not None))
        self.passed.add(node.name)
        return self.passed if self._parts(node.output[0], axis, ends) else set()

    def _size(self, tensor: str, axis: int) -> int | None:
        shape = self.shapes.get(tensor, ())
        return shape[axis] if axis < len(shape) else None

    def _parts(self, tensor: str, axis: int, ends: set[int]) -> bool:
        """Whether all that reads the tensor leads to nodes that cut the axis at one of ``ends``."""
        readers = [n for n in self.index.readers(tensor) if not is_op(n, *SHAPE_READERS)]
        if not readers or tensor in self.index.outputs:
            return False
        for node in readers:
            self.passed.add(node.name)
            if is_op(node, "Split", "Slice"):
                if not self._cuts(node, axis, ends):
                    return False
                continue
            moved = self._move(node, axis) if is_op(node, *BETWEEN) else None
            if moved is None or not self._parts(node.output[0], moved, ends):
                return False
        return True

    def _cuts(self, node: NodeProto, axis: int, ends: set[int]) -> bool:
        shape = self.shapes.get(node.input[0])
        if shape is None:
            return False
        if is_op(node, "Split"):
            if attribute_of(node, "axis", 0) % len(shape) != axis:
                return False
            sizes = [self._size(tensor, axis) for tensor in node.output]
            return None not in sizes and not ends.isdisjoint(accumulate(size or 0 for size in sizes))
        axes = constant(self.index, node.input[3]) if len(node.input) > 3 and node.input[3] else None
        if axes is None or [int(each) % len(shape) for each in axes.reshape(-1)] != [axis]:
            return False
        starts, stops = (constant(self.index, name) for name in node.input[1:3])
        return any(each is not None and int(each.reshape(-1)[0]) in ends for each in (starts, stops))

    def _move(self, node: NodeProto, axis: int) -> int | None:
        """The axis behind a node; None where it is none any more."""
        before, after = self.shapes.get(node.input[0], ()), self.shapes.get(node.output[0], ())
        if is_op(node, "Transpose") and before:
            order = list(attribute_of(node, "perm", None) or reversed(range(len(before))))
            return order.index(axis)
        if is_op(node, "Concat") and after:
            return axis if attribute_of(node, "axis", 0) % len(after) != axis else None
        if axis >= len(before) or not after:
            return None
        size = before[axis]
        from_end = axis - len(before) + len(after)
        if before[:axis] == after[:axis] and after[axis : axis + 1] == (size,):
            return axis
        if from_end >= 0 and before[axis:] == after[from_end:]:
            return from_end
        return None
