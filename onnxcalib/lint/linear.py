"""Rules of every QuantizeLinear and DequantizeLinear: its scale, its zero point, its partner."""

from __future__ import annotations

import math

import numpy as np
from onnx import NodeProto

from ..graph.index import is_op
from ..graph.inspect.grids import PASSED_BY, Grid, GriddedGraph
from ..graph.inspect.integers import find_mismatches, is_linear
from ..graph.ops import DEQUANTIZE, SHAPE_READERS
from ..targets.rules import Pairs, PositiveScales, PowerOfTwo, Quantity, Rule
from .found import Faults, Found, spell_list, spell_values

QUANTITIES: dict[str, Quantity] = {
    "activation": "activations",
    "weight": "weights",
    "bias": "biases",
    "constant": "constants",
}


def check_positive_scales(graph: GriddedGraph, rule: PositiveScales) -> Faults:
    """Every scale is a constant whose values are positive and finite; a target may take negative ones of weights."""
    for grid in graph.grids:
        scale = grid.scale
        if scale is None:
            yield Found(grid.where, f"the computed scale {grid.node.input[1]}", "a constant", grid.stored)
            continue
        signed = rule.negative_weights and grid.role in ("weight", "bias")
        if not scale.size or not np.all(np.isfinite(scale)) or np.any((np.abs(scale) if signed else scale) <= 0):
            yield Found(grid.where, f"scale {_spell_worst(scale)}", "positive, finite values", grid.stored)


def check_explicit_zero_points(graph: GriddedGraph, rule: Rule) -> Faults:
    """Every zero point is a constant of the file, also where it is 0."""
    for grid in graph.grids:
        if not grid.has_zero_point:
            yield Found(grid.where, "no zero point", "a constant, also where it is 0", grid.stored)
        elif grid.zero_point is None:
            yield Found(grid.where, f"the computed zero point {grid.node.input[2]}", "a constant", grid.stored)


def check_own_zero_points(graph: GriddedGraph, rule: Rule) -> Faults:
    """Nodes that share a zero point have equal scales too."""
    owners: dict[str, Grid] = {}
    for grid in graph.grids:
        if not grid.has_zero_point:
            continue
        owner = owners.setdefault(grid.node.input[2], grid)
        if owner.scale is not None and grid.scale is not None and not np.array_equal(owner.scale, grid.scale):
            found = f"zero point {grid.node.input[2]}, which {owner.where} has too with another scale"
            yield Found(grid.where, found, "a zero point of its own", grid.stored)


def check_pairs(graph: GriddedGraph, rule: Pairs) -> Faults:
    """Every QuantizeLinear has a DequantizeLinear of its grid behind it, and the reverse."""
    told = {grid.source for grid in graph.grids if grid.source}  # by the DequantizeLinears that read them
    for grid in graph.grids:
        if grid.quantizes:
            yield from _check_behind(graph, grid, told)
        elif grid.source:
            allowed = "integers of a QuantizeLinear or a constant"
            yield Found(grid.where, f"integers from {_spell_source(graph, grid.source)}", allowed)
        elif grid.role == "activation" and (strange := [op for op in grid.passed_by if op not in rule.between]):
            allowed = f"{spell_list(rule.between) or 'nothing'} between QuantizeLinear and DequantizeLinear"
            yield Found(grid.where, f"{spell_list(strange)} in front of it", allowed)
    for tensor in () if graph.within else find_mismatches(graph.model):
        found = "a DequantizeLinear of another scale or zero point than its QuantizeLinear"
        yield Found(f"tensor {tensor}", found, "equal ones in a pair")


def _check_behind(graph: GriddedGraph, grid: Grid, told: set[str]) -> Faults:
    name, allowed = grid.node.output[0], "a DequantizeLinear"
    readers = graph.index.readers(name)
    if name in graph.index.outputs:
        yield Found(grid.where, "integers as an output of the graph", allowed)
    elif not readers:
        yield Found(grid.where, "no reader", allowed)
    for reader in readers:
        # What stands in the middle and is not allowed is told by the DequantizeLinear behind it.
        if not _keeps_integers(graph, reader) and told.isdisjoint(reader.output):
            yield Found(grid.where, f"the reader {graph.spell(reader)}", allowed)


def _keeps_integers(graph: GriddedGraph, node: NodeProto) -> bool:
    """Whether a node passes integers on to a DequantizeLinear, or reads none of their values."""
    if is_linear(node, DEQUANTIZE) or is_op(node, *SHAPE_READERS):
        return True
    waiting = list(node.output) if is_op(node, *PASSED_BY) else []
    for name in waiting:  # which grows
        for reader in graph.index.readers(name):
            if is_linear(reader, DEQUANTIZE):
                return True
            if is_op(reader, *PASSED_BY):
                waiting += [made for made in reader.output if made not in waiting]
    return False


def check_power_of_two(graph: GriddedGraph, rule: PowerOfTwo) -> Faults:
    """The scales of these quantities are powers of two."""
    for grid in graph.grids:
        if QUANTITIES[grid.role] in rule.of and grid.scale is not None and (strange := _list_odd(grid.scale)):
            yield Found(grid.where, f"scale {spell_values(np.asarray(strange))}", "powers of two", grid.stored)


def _list_odd(scale: np.ndarray) -> list[float]:
    """The values that are positive and no powers of two."""
    values = (float(value) for value in scale.reshape(-1))
    return [value for value in values if math.isfinite(value) and value > 0 and math.frexp(value)[0] != 0.5]


def _spell_worst(scale: np.ndarray) -> str:
    bad = [value for value in scale.reshape(-1) if not math.isfinite(value) or value <= 0]
    return f"{bad[0]:g}" if bad else "without a value"


def _spell_source(graph: GriddedGraph, tensor: str) -> str:
    node = graph.index.producer.get(tensor)
    return f"the input {tensor}" if node is None else graph.spell(node)
