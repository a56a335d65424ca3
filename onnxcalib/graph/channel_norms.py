"""Norms over the last axis, one node or several each, with the constants that they multiply by and add, by channel."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto

from .index import Index, attribute_of, is_op, known_constant
from .norm_sums import NORMS
from .patterns import RMS_NORM, Pattern, find_patterns

# The scale that a written-out norm was found to have, and the constant among its nodes, in units of the largest.
ALIKE = 1e-3


class Operand(NamedTuple):
    """A constant that a node reads as the input of this number, and the axis along which its channels lie."""

    node: str
    number: int
    axis: int


class ChannelNorm(NamedTuple):
    """A norm of an activation.

    node: that gives the output, by name. nodes: all of it. inside: what lies between source and output. scale, shift:
    None without any. axis: the first that it goes over, up to the last. fixed: whether it reads nothing else but
    constants, and gives nothing else.
    """

    node: str
    source: str
    output: str
    scale: Operand | None
    shift: Operand | None
    axis: int = -1
    fixed: bool = True
    nodes: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()


def find_channel_norms(model: ModelProto) -> list[ChannelNorm]:
    """Nodes of LayerNormalization and RMSNormalization, and RMSNorms that are written out, in graph order."""
    index = Index(model.graph)
    found = [_of_node(index, node) for node in index.nodes.values() if is_op(node, *NORMS)]
    if any(is_op(node, "ReduceMean") for node in index.nodes.values()):
        found += filter(None, (_of_pattern(index, each) for each in find_patterns(model)))
    return sorted(found, key=lambda each: index.position[each.node])


def _of_node(index: Index, node: NodeProto) -> ChannelNorm:
    shift = Operand(node.name, 2, 0) if len(node.input) > 2 and node.input[2] else None
    fixed = all(name in index.initializers for name in node.input[1:] if name) and len(node.output) == 1
    axis = attribute_of(node, "axis", -1)
    return ChannelNorm(
        node.name, node.input[0], node.output[0], Operand(node.name, 1, 0), shift, axis, fixed, (node.name,)
    )


def _of_pattern(index: Index, pattern: Pattern) -> ChannelNorm | None:
    """An RMSNorm of the last axis; None for others, and where its scale is not one constant of its nodes."""
    function = pattern.function
    if function.kind != RMS_NORM or function.axes != (-1,) or not pattern.closed or function.scale is None:
        return None
    scale = function.scale.reshape(-1)
    nodes = [index.nodes[name] for name in pattern.nodes]
    operand = _find_scale(index, nodes, scale)
    if operand is None and not _is_alike(scale, np.ones_like(scale)):
        return None
    inside = tuple(t for node in nodes for t in node.output if t != pattern.output)
    return ChannelNorm(
        nodes[-1].name, pattern.source, pattern.output, operand, None, nodes=pattern.nodes, inside=inside
    )


def _find_scale(index: Index, nodes: Collection[NodeProto], scale: np.ndarray) -> Operand | None:
    """The constant of one Mul that multiplies channels by this scale."""
    for node in nodes:
        for number, name in enumerate(node.input):
            if is_op(node, "Mul") and name in index.initializers:
                value = known_constant(index, name)
                if value.shape[-1:] == scale.shape and value.size == scale.size and _is_alike(value.reshape(-1), scale):
                    return Operand(node.name, number, value.ndim - 1)
    return None


def _is_alike(value: np.ndarray, scale: np.ndarray) -> bool:
    return bool(np.abs(value - scale).max(initial=0) <= ALIKE * np.abs(scale).max(initial=0))
