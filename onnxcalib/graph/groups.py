"""Placing for devices that run whole groups: DequantizeLinear, one operator, and QuantizeLinear again.

All that an operator of the target computes with is on a grid, constants too, and so is what it gives. A Relu that alone
reads it belongs to its group. Operators that only move values are on integers where they stand between such groups.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from onnx import ModelProto, NodeProto, TensorProto

from ..spec import LayerScheme, Requirements
from .finite import is_weight
from .fusion import carried_outputs, moved_outputs, moves_values
from .index import Index, is_op, known_constant
from .ops import CONVOLUTIONS, SHAPE_READERS
from .shapes import infer_graph

# Operators of which the first input alone holds values; the others are bounds, sizes and places.
ONE_OPERAND = ("Clip", "Resize", "Upsample", "Pad", "Dropout")


class Groups(NamedTuple):
    """Where a scheme has grids.

    tensors: those that have one, in graph order, constants first. outputs: node on integers -> what is quantized behind
    it. constant_reads: constant with a grid -> the nodes that read its floats.
    """

    tensors: list[str]
    outputs: dict[str, list[str]]
    constant_reads: dict[str, frozenset[str]]


def place_groups(
    model: ModelProto, index: Index, layers: Collection[LayerScheme], skipped: frozenset[str], needs: Requirements
) -> Groups:
    """Put every layer and every node of the target's operators on integers, but for those of ``skipped``.

    layers: those whose input and weight are quantized. Other convolutions stay in float, and what reads a constant that
    no grid holds, such as a mask of infinities.
    """
    groups = _Finder(model, index, layers, skipped, needs)
    groups.drop_loose_movers()
    operands = {t for name in groups.operands for t in groups.operands[name]}
    outputs = {name: groups.outputs[name] for name in groups.operands}
    wanted = operands.union(*outputs.values())
    order = [*index.initializers, *index.inputs, *(t for node in model.graph.node for t in node.output)]
    constants = [t for t in index.initializers if t in operands]
    reads = {
        t: frozenset(n.name for n in index.readers(t) if t not in groups.operands.get(n.name, ())) for t in constants
    }
    return Groups(
        tensors=[t for t in order if t in wanted],
        outputs=outputs,
        constant_reads=reads,
    )


def only_leaves(index: Index, tensor: str) -> bool:
    """Whether a tensor reaches outputs of the graph alone, by operators that move its values."""
    waiting = [tensor]
    for name in waiting:  # which grows
        readers = [node for node in index.readers(name) if not is_op(node, *SHAPE_READERS)]
        if not readers and name not in index.outputs:
            return False
        if not all(moves_values(index, node) for node in readers):
            return False
        waiting += [node.output[0] for node in readers if node.output[0] not in waiting]
    return True


class _Finder:
    """operands and outputs: node -> the tensors around it that have a grid where it is on integers."""

    def __init__(
        self,
        model: ModelProto,
        index: Index,
        layers: Collection[LayerScheme],
        skipped: frozenset[str],
        needs: Requirements,
    ) -> None:
        self.index, self.needs = index, needs
        self.inputs = {layer.name: layer.input for layer in layers}
        self.others = _list_other_types(model)
        self.operands: dict[str, list[str]] = {}
        self.outputs: dict[str, list[str]] = {}
        inside: set[str] = set()
        for node in model.graph.node:
            taken = node.name in self.inputs or is_op(node, *needs.grouped, *needs.through)
            if node.name in skipped or node.name in inside or not taken:
                continue
            operands = self._list_operands(node)
            constants = [t for t in operands if t in index.initializers]
            computes = any(t and t not in index.initializers for t in node.input)  # a Gather of a table by its indices
            if not operands or not computes or not self._is_float(node.output[0]):
                continue
            if not all(is_weight(known_constant(index, t)) for t in constants):
                continue
            self.operands[node.name] = operands
            self.outputs[node.name] = self._list_outputs(node)
            inside.update(self._list_absorbed(node))

    def drop_loose_movers(self) -> None:
        """Leave in float what moves values of which no other group has a need.

        A value that float operators make, and that some read, goes to these unrounded.
        """
        nodes = [self.index.nodes[name] for name in self.operands]
        kept = {node.name for node in nodes if not moves_values(self.index, node)}
        size = -1
        while size != len(kept):
            size = len(kept)
            made = {t for name in kept for t in self.outputs[name]}
            for node in nodes:
                if node.name not in kept and (node.input[0] in made or self._feeds(node, kept)):
                    kept.add(node.name)
                    made.update(self.outputs[node.name])
        self.operands = {name: each for name, each in self.operands.items() if name in kept}

    def _feeds(self, node: NodeProto, kept: Collection[str]) -> bool:
        """Whether all that read a mover's output read it on a grid."""
        outputs = self.outputs[node.name]
        readers = [n for t in outputs for n in self.index.readers(t) if not is_op(n, *SHAPE_READERS)]
        return bool(readers) and all(n.name in kept for n in readers) and set(outputs).isdisjoint(self.index.outputs)

    def _list_operands(self, node: NodeProto) -> list[str]:
        """The tensors of floats that a node computes with, without weights and biases; none of other layers."""
        if node.name in self.inputs:
            return [self.inputs[node.name]]
        if is_op(node, *CONVOLUTIONS, "Gemm"):
            return []
        given = node.input[:1] if is_op(node, *ONE_OPERAND) else node.input
        return [t for t in dict.fromkeys(given) if t and self._is_float(t)]

    def _list_outputs(self, node: NodeProto) -> list[str]:
        if is_op(node, *self.needs.at_exit) and only_leaves(self.index, node.output[0]):
            return []
        absorbed = self._list_absorbed(node)
        if absorbed:
            return [self.index.nodes[absorbed[-1]].output[0]]
        return moved_outputs(node) if moves_values(self.index, node) else list(node.output[:1])

    def _list_absorbed(self, node: NodeProto) -> list[str]:
        """Names of the operators behind a node that belong to its group."""
        (first, *others) = carried_outputs(self.index, node) or [""]
        if not others and first not in node.output and is_op(self.index.producer[first], *self.needs.through):
            return [self.index.producer[first].name]
        readers = self.index.readers(node.output[0])
        if len(readers) != 1 or node.output[0] in self.index.outputs or moves_values(self.index, node):
            return []
        (reader,) = readers
        own = is_op(reader, *self.needs.grouped, "Relu", "Clip") or not is_op(reader, *self.needs.through)
        return [] if own or node.output[0] != reader.input[0] else [reader.name]

    def _is_float(self, tensor: str) -> bool:
        return tensor not in self.others


def _list_other_types(model: ModelProto) -> set[str]:
    """Tensors that are known to hold no float32."""
    graph = infer_graph(model)
    values = () if graph is None else (*graph.input, *graph.value_info, *graph.output)
    return {v.name for v in values if v.type.tensor_type.elem_type != TensorProto.FLOAT} | {
        t.name for t in model.graph.initializer if t.data_type != TensorProto.FLOAT
    }
