"""Rules of devices that multiply by shifting: how far apart the powers of two of a node's grids may lie.

A grid of scale 2^-p has the position p. Layers shift sums of position w + i to the output's o; a bias of position b is
shifted to theirs.
"""

from __future__ import annotations

import math

from ..graph.index import is_op
from ..graph.inspect.grids import FUNCTIONS, Grid, GriddedGraph, GriddedLayer
from ..targets.rules import HardSigmoids, Shift, ShiftBias
from .found import Faults, Found


def check_shift_cut(graph: GriddedGraph, rule: Shift) -> Faults:
    """w + i - o of these layers lies between the ends."""
    for layer in graph.layers():
        cut = _find_cut(layer) if is_op(layer.node, *rule.operators) else None
        if cut is not None:
            yield from _judge(layer.where, "shift_cut", cut, *rule.ends)


def check_shift_bias(graph: GriddedGraph, rule: ShiftBias) -> Faults:
    """w + i - b of these layers lies between the ends, of which the lower is 0 in front of a LeakyRelu."""
    for layer in graph.layers():
        cut, bias = _find_cut(layer), find_position(layer.bias)
        sums = _find_sums(layer)
        if is_op(layer.node, *rule.operators) and cut is not None and bias is not None and sums is not None:
            leaky = any(is_op(node, "LeakyRelu") for node in graph.index.readers(layer.node.output[0]))
            least = 0 if leaky else min(0, cut - rule.room)
            yield from _judge(layer.where, "shift_bias", sums - bias, least, rule.most)


def check_shift_read(graph: GriddedGraph, rule: Shift) -> Faults:
    """The largest less the smallest position of these operators' inputs lies between the ends."""
    for where, inputs, _ in _list_nodes(graph, rule):
        yield from _judge(where, "shift_read", max(inputs) - min(inputs), *rule.ends)


def check_shift_write_add(graph: GriddedGraph, rule: Shift) -> Faults:
    """The smallest position of the inputs less that of the output lies between the ends."""
    for where, inputs, output in _list_nodes(graph, rule):
        if output is not None:
            yield from _judge(where, "shift_write", min(inputs) - output, *rule.ends)


def check_shift_write_mul(graph: GriddedGraph, rule: Shift) -> Faults:
    """The sum of the positions of the inputs less that of the output lies between the ends."""
    for where, inputs, output in _list_nodes(graph, rule):
        if output is not None:
            yield from _judge(where, "shift_write", sum(inputs) - output, *rule.ends)


def check_shift_swish(graph: GriddedGraph, rule: Shift) -> Faults:
    """As ``check_shift_write_mul``, of the product of a tensor and its own HardSigmoid."""
    for node in graph.graph.node:
        readers = (reader for name in node.input for reader in graph.index.readers(name))
        if is_op(node, *rule.operators) and any(is_op(reader, "HardSigmoid") for reader in readers):
            known = [each for name in node.input if (each := find_position(graph.maker(name))) is not None]
            output = find_position(graph.behind(node.output[0]))
            if len(known) == len(node.input) and output is not None:
                yield from _judge(graph.spell(node), "shift_swish", sum(known) - output, *rule.ends)


def check_hard_sigmoid(graph: GriddedGraph, rule: HardSigmoids) -> Faults:
    """The positions on both sides of a HardSigmoid lie between their ends, and so does its shift."""
    for node in graph.graph.node:
        if not is_op(node, "HardSigmoid"):
            continue
        where, fed = graph.spell(node), find_position(graph.maker(node.input[0]))
        # What is multiplied by a constant behind it is quantized behind that.
        made = find_position(graph.behind(node.output[0], (*FUNCTIONS, "Mul")))
        if fed is not None:
            yield from _judge(where, "input position", fed, *rule.inputs)
        if made is not None:
            yield from _judge(where, "output position", made, *rule.outputs)
        if fed is not None and made is not None:
            yield from _judge(where, "shift_sigmoid", rule.room + fed - made, *rule.ends)


def find_position(grid: Grid | None) -> int | None:
    """p of a grid of one scale 2^-p; None for any other."""
    if grid is None or grid.scale is None or grid.scale.size != 1:
        return None
    scale = float(grid.scale.reshape(-1)[0])
    if not math.isfinite(scale) or scale <= 0:
        return None
    fraction, exponent = math.frexp(scale)
    return 1 - exponent if fraction == 0.5 else None


def _find_sums(layer: GriddedLayer) -> int | None:
    """w + i."""
    weight, fed = find_position(layer.weight), find_position(layer.input)
    return None if weight is None or fed is None else weight + fed


def _find_cut(layer: GriddedLayer) -> int | None:
    """w + i - o."""
    sums, made = _find_sums(layer), find_position(layer.output)
    return None if sums is None or made is None else sums - made


def _list_nodes(graph: GriddedGraph, rule: Shift) -> list[tuple[str, list[int], int | None]]:
    """Name, positions of the inputs and position of the output of the operators whose inputs all have one."""
    found = []
    for node in graph.graph.node:
        if is_op(node, *rule.operators):
            positions = [find_position(graph.maker(name)) for name in node.input]
            known = [each for each in positions if each is not None]
            if len(known) == len(positions):
                found.append((graph.spell(node), known, find_position(graph.behind(node.output[0]))))
    return found


def _judge(where: str, name: str, shift: int, least: int, most: int) -> Faults:
    if not least <= shift <= most:
        yield Found(where, f"{name} {shift}", f"{least} to {most}")
