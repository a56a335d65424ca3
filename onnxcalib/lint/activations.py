"""Rules of activations: their types, and their grids."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..graph.index import is_op
from ..graph.inspect.grids import Grid, GriddedGraph
from ..targets.rules import ActivationTypes, FixedGrids, LeastRange, Rule, ZeroPoints
from .found import Faults, Found, spell_list, spell_values


def check_activation_types(graph: GriddedGraph, rule: ActivationTypes) -> Faults:
    """Activations have these types."""
    for grid in _activations(graph):
        if grid.type not in rule.types:
            yield Found(grid.where, grid.type, spell_list(rule.types), grid.type)
        elif grid.type in rule.in_float:
            fast = spell_list(kind for kind in rule.types if kind not in rule.in_float)
            yield Found(grid.where, f"{grid.type}, which is computed in float", fast, grid.type, "slower")


def check_activation_per_tensor(graph: GriddedGraph, rule: Rule) -> Faults:
    """An activation has one scale."""
    for grid in _activations(graph):
        if grid.scale is not None and grid.scale.size > 1:
            yield Found(grid.where, f"{grid.scale.size} scales", "one scale for an activation", grid.type)


def check_activation_zero_points(graph: GriddedGraph, rule: ZeroPoints) -> Faults:
    """The zero points of activations are 0."""
    yield from check_zero_points(_activations(graph), rule)


def check_zero_points(grids: Iterator[Grid], rule: ZeroPoints) -> Faults:
    """The zero points of these grids are 0, or what the rule has instead, where it names their type, or none."""
    for grid in grids:
        point, allowed = grid.zero_point, rule.instead.get(grid.type, 0)  # type: ignore[call-overload]
        held = allowed or not rule.types or grid.type in rule.types
        if held and point is not None and np.any(point != allowed):
            found = f"zero point {spell_values(point[point != allowed])}"
            yield Found(grid.where, found, f"{allowed} for {grid.type}", grid.type)


def check_least_range(graph: GriddedGraph, rule: LeastRange) -> Faults:
    """The ends of an activation's grid are far enough apart."""
    for grid in _activations(graph):
        bits = int("".join(filter(str.isdigit, grid.type)) or 8)
        if grid.scale is not None and grid.scale.size and grid.quantizes:
            width = float(grid.scale.min()) * (2**bits - 1)
            # As float32, in which scales are stored: a grid of just this range may lie one rounding below it.
            if 0 < width < rule.least * (1 - np.finfo(np.float32).eps):
                yield Found(grid.where, f"a grid {width:.3g} wide", f"{rule.least:g} or more", grid.type)


def check_fixed_grids(graph: GriddedGraph, rule: FixedGrids) -> Faults:
    """What these operators give stands on the one grid that the device has for it."""
    for node in graph.graph.node:
        for grid in graph.quantizers(node.output[0]) if node.output and is_op(node, *rule.grids) else ():
            fixed = rule.grids[node.op_type].get(grid.type)  # type: ignore[call-overload]
            if fixed is None or grid.scale is None or grid.zero_point is None:
                continue
            scale, zero_point = fixed
            same = all(math.isclose(value, scale, rel_tol=1e-6) for value in grid.scale.reshape(-1))
            if not same or np.any(grid.zero_point != zero_point):
                found = f"scale {spell_values(grid.scale)} and zero point {spell_values(grid.zero_point)}"
                allowed = f"{scale:.9g} and {zero_point} for {grid.type} behind a {node.op_type}"
                yield Found(grid.where, found, allowed, grid.type)


def _activations(graph: GriddedGraph) -> Iterator[Grid]:
    return (grid for grid in graph.grids if grid.role == "activation")
