"""Grids whose powers of two lie as near to each other as a device's shifts need.

A grid of scale 2^-p has the position p. Where two lie too far apart, the finer one is made coarser: beside the other's
steps, those that it loses are small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import ModelProto, NodeProto

from ..graph.index import Index, is_op, known_constant
from ..graph.layer_params import LayerParams
from ..graph.ops import SHAPE_READERS
from ..graph.weight_file import put_integers
from ..spec import Grids, LayerScheme, QParams, QuantScheme
from ..targets.rules import HardSigmoids, Rules


def hold_shifts(
    model: ModelProto, scheme: QuantScheme, grids: Grids, rules: Rules, layers: Mapping[str, LayerParams] | None = None
) -> Grids:
    """The grids, made coarser where the target's shifts need it.

    layers: those that are solved; the weights of others will lie where their range lets them, or be finer.
    """
    shifts = (rules.shift_cut, rules.shift_read, rules.shift_write_add, rules.shift_write_mul, rules.shift_swish)
    if rules.hard_sigmoid is None and not any(shifts):
        return grids
    held = _Positions(model, scheme, grids)
    solved = {name: find_position(each.grid) for name, each in (layers or {}).items()}
    weights = {layer.name: _estimate(layer, held.index) for layer in scheme.layers} | solved
    if rules.hard_sigmoid:
        held.clip_gates(rules.hard_sigmoid)
    while held.changed:
        held.changed = False
        for layer in scheme.layers if rules.shift_cut else ():
            made, position = held.behind(held.index.nodes[layer.name].output[0]), weights[layer.name]
            if rules.shift_cut and layer.op in rules.shift_cut.operators and made and position is not None:
                if layer.input in held.of:
                    held.lower(made, position + held.of[layer.input] - rules.shift_cut.ends[0])
        for node in held.index.nodes.values():
            _hold_node(held, node, rules)
    return held.write(grids)


def hold_weights(
    model: ModelProto, scheme: QuantScheme, grids: Grids, rules: Rules, layers: Mapping[str, LayerParams]
) -> Mapping[str, LayerParams]:
    """The solved layers, with weights made coarser that are too fine for the shift from their sums to their outputs.

    The least sums lie so far below the output's step that nothing is lost.
    """
    if rules.shift_cut is None:
        return layers
    held, moved = _Positions(model, scheme, grids), {}
    for layer in scheme.layers:
        made = held.behind(held.index.nodes[layer.name].output[0])
        own = find_position(layers[layer.name].grid) if layer.name in layers else None
        if layer.op in rules.shift_cut.operators and made and own is not None and layer.input in held.of:
            beyond = own + held.of[layer.input] - held.of[made] - rules.shift_cut.ends[1]
            if beyond > 0:
                params = layers[layer.name]
                grid = replace(params.grid, scale=np.asarray(params.grid.scale * 2.0**beyond, np.float32))
                integers = params.read()
                integers = np.rint(integers / 2.0**beyond).astype(integers.dtype)
                moved[layer.name] = replace(params, integers=put_integers(integers, grid.spec.bits), grid=grid)
    return {**layers, **moved} if moved else layers


def _estimate(layer: LayerScheme, index: Index) -> int | None:
    """The position of the grid that holds a whole weight; None for one of zeros, or without powers of two."""
    largest = float(np.abs(known_constant(index, layer.weight)).max(initial=0))
    if largest == 0 or not layer.weight_spec.power_of_two:
        return None
    return math.floor(math.log2(layer.weight_spec.qmax / largest))


class _Positions:
    """The positions of activations; ``lower`` moves one, and what shares its grid."""

    def __init__(self, model: ModelProto, scheme: QuantScheme, grids: Grids) -> None:
        self.index, self.scheme = Index(model.graph), scheme
        found = {tensor: find_position(grid) for tensor, grid in grids.activations.items()}
        self.of = {tensor: position for tensor, position in found.items() if position is not None}
        self.changed = True

    def lower(self, tensor: str, most: int) -> None:
        for each in self.scheme.members_of(tensor) if self.of[tensor] > most else ():
            if each in self.of:
                self.of[each], self.changed = most, True

    def clip_gates(self, rule: HardSigmoids) -> None:
        """Positions around HardSigmoids from the least ones on: what lies beyond such grids, they give as 0 or 1."""
        for node in self.index.nodes.values():
            made = self.behind(node.output[0]) if is_op(node, "HardSigmoid") else None
            for tensor, ends in ((node.input[0], rule.inputs), (made, rule.outputs)) if made else ():
                if tensor in self.of:
                    self.of |= {t: max(self.of[t], ends[0]) for t in self.scheme.members_of(tensor) if t in self.of}

    def behind(self, tensor: str) -> str | None:
        """The tensor with a position that a node's output becomes by operators that belong to the node."""
        while tensor not in self.of:
            readers = [node for node in self.index.readers(tensor) if not is_op(node, *SHAPE_READERS)]
            if len(readers) != 1 or not is_op(readers[0], *self.scheme.requirements.through, "Relu", "Clip"):
                return None
            tensor = readers[0].output[0]
        return tensor

    def write(self, grids: Grids) -> Grids:
        """The grids with these positions."""
        moved = {
            tensor: replace(grids.activations[tensor], scale=np.asarray(2.0**-position, np.float32))
            for tensor, position in self.of.items()
            if position != find_position(grids.activations[tensor])
        }
        return grids.updated(moved) if moved else grids


def _hold_node(held: _Positions, node: NodeProto, rules: Rules) -> None:
    inputs = [t for t in node.input if t]
    made = held.behind(node.output[0]) if node.output else None
    if not inputs or any(t not in held.of for t in inputs):
        return
    if rules.hard_sigmoid and is_op(node, "HardSigmoid"):
        held.lower(inputs[0], rules.hard_sigmoid.inputs[1])
        if made is not None:
            held.lower(made, min(rules.hard_sigmoid.outputs[1], rules.hard_sigmoid.room + held.of[inputs[0]]))
    if rules.shift_read and is_op(node, *rules.shift_read.operators):
        for tensor in inputs:
            held.lower(tensor, min(held.of[t] for t in inputs) + rules.shift_read.ends[1])
    if made is None:
        return
    if rules.shift_write_add and is_op(node, *rules.shift_write_add.operators):
        held.lower(made, min(held.of[t] for t in inputs) - rules.shift_write_add.ends[0])
        for tensor in inputs if min(held.of[t] for t in inputs) - held.of[made] > rules.shift_write_add.ends[1] else ():
            held.lower(tensor, held.of[made] + rules.shift_write_add.ends[1])
    swish = any(is_op(reader, "HardSigmoid") for t in inputs for reader in held.index.readers(t))
    for rule in (rules.shift_write_mul, rules.shift_swish if swish else None):
        if rule and is_op(node, *rule.operators):
            held.lower(made, sum(held.of[t] for t in inputs) - rule.ends[0])
            movable = [t for t in inputs if not _is_gate(held.index, t)]
            finest = max(movable or inputs, key=held.of.__getitem__)
            held.lower(finest, rule.ends[1] + held.of[made] - (sum(held.of[t] for t in inputs) - held.of[finest]))


def _is_gate(index: Index, tensor: str) -> bool:
    """Whether a HardSigmoid gives the tensor, whose grid has a least position of its own."""
    node = index.producer.get(tensor)
    return node is not None and is_op(node, "HardSigmoid")


def find_position(grid: QParams) -> int | None:
    """p of a grid of one scale 2^-p; None for any other."""
    if not grid.spec.power_of_two or grid.scale.size != 1:
        return None
    return -round(math.log2(float(grid.scale.reshape(-1)[0])))
