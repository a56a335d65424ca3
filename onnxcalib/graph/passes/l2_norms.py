"""Vectors divided by their length as one operator, LpNormalization, for devices that fail on its parts."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..edit import drop_dead
from ..index import Index, attribute_of, constant, is_op

# The least length, which keeps zeros from being divided by zero: torch's normalize has 1e-12.
MOST_LEAST = 1e-6


def write_l2_norms(model: ModelProto) -> int:
    """Replace x / max(sqrt(sum x^2), least) by LpNormalization(x), which gives zeros for zeros; returns how many.

    least: MOST_LEAST or less, or none. It may be a Clip or a Max, and an Expand may stand behind it. The length is a
    ReduceL2 that keeps its one axis.
    """
    index, count = Index(model.graph), 0
    for node in model.graph.node:
        axis = _read_axis(index, node) if is_op(node, "Div") else None
        if axis is not None:
            new = helper.make_node("LpNormalization", [node.input[0]], list(node.output), node.name, axis=axis, p=2)
            node.CopyFrom(new)
            count += 1
    if count:
        drop_dead(model)
    return count


def _read_axis(index: Index, node: NodeProto) -> int | None:
    """The axis along which the node divides what it reads by its length; None where it does something else."""
    source, tensor = node.input
    while (maker := index.producer.get(tensor)) is not None:
        if is_op(maker, "Expand") or _is_floor(index, maker):
            tensor = maker.input[0]
            continue
        if not is_op(maker, "ReduceL2") or maker.input[0] != source or not attribute_of(maker, "keepdims", 1):
            return None
        given = constant(index, maker.input[1]) if len(maker.input) > 1 else attribute_of(maker, "axes", None)
        axes = [] if given is None else [int(axis) for axis in given]
        return axes[0] if len(axes) == 1 else None
    return None


def _is_floor(index: Index, node: NodeProto) -> bool:
    """Whether the node raises what is next to zero, and nothing else."""
    bounds = [constant(index, name) if name else None for name in node.input[1:]]
    if is_op(node, "Clip"):
        upper = bounds[1] if len(bounds) > 1 else None
        above = len(node.input) < 3 or not node.input[2] or (upper is not None and bool(np.isinf(upper).all()))
        return above and bool(bounds) and _is_tiny(bounds[0])
    return is_op(node, "Max") and len(bounds) == 1 and _is_tiny(bounds[0])


def _is_tiny(value: np.ndarray | None) -> bool:
    return value is not None and value.size == 1 and 0 <= float(value.reshape(-1)[0]) <= MOST_LEAST
