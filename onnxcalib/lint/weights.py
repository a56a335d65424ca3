"""Rules of weights and biases: their types, and their grids."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..graph.index import attribute_of, is_op
from ..graph.inspect.grids import Grid, GriddedGraph, GriddedLayer
from ..targets.rules import Biases, WeightScales, WeightTypes, ZeroPoints
from .activations import check_zero_points
from .found import Faults, Found, spell_list, spell_values

FINENESS = ("tensor", "channel", "block")
# The scale of a bias is a product that tools compute in float32 or in double: they differ by a rounding of either.
ROUNDING = 1e-5


def check_weight_types(graph: GriddedGraph, rule: WeightTypes) -> Faults:
    """Weights are stored in these types, some of them behind a Cast to 8 bits only."""
    for layer, grid in _weights(graph):
        if grid.stored not in rule.types:
            yield Found(layer.where, f"a weight of {grid.stored}", spell_list(rule.types), grid.stored)
        elif grid.type in rule.through_cast and layer.input is not None and is_op(layer.node, *rule.operators):
            found = f"a DequantizeLinear that reads {grid.type} directly"
            allowed = f"{grid.type} through a Cast to int8 in front of the DequantizeLinear"
            yield Found(layer.where, found, allowed, grid.type)


def check_weight_scales(graph: GriddedGraph, rule: WeightScales) -> Faults:
    """No weight has finer scales than these, nor scales along another axis than that of its channels."""
    for layer, grid in _weights(graph):
        finest = "block" if grid.block else "tensor" if grid.axis is None else "channel"
        if FINENESS.index(finest) > FINENESS.index(rule.granularity):
            yield Found(layer.where, f"a weight with a scale a {finest}", f"a scale a {rule.granularity}", grid.stored)
        elif grid.block and rule.blocks and grid.block not in rule.blocks:
            allowed = f"blocks of {spell_list(map(str, rule.blocks))}"
            yield Found(layer.where, f"a weight with blocks of {grid.block}", allowed, grid.stored)
        elif finest == "channel" and grid.dims:
            axis = _find_axis(layer, rule, len(grid.dims))
            if axis is not None and grid.axis != axis:
                yield Found(layer.where, f"scales of its weight along axis {grid.axis}", f"axis {axis}", grid.stored)


def check_weight_zero_points(graph: GriddedGraph, rule: ZeroPoints) -> Faults:
    """The zero points of weights are 0."""
    yield from check_zero_points((grid for _, grid in _weights(graph)), rule)


def check_biases(graph: GriddedGraph, rule: Biases) -> Faults:
    """The biases of layers on integers are of these kinds, and int32 ones have the scale of the products."""
    for layer in graph.layers():
        kinds = rule.kinds.get(layer.node.op_type)
        if kinds is None or layer.input is None or layer.weight is None:
            continue
        if layer.float_bias is not None:
            if "float" not in kinds:
                yield Found(layer.where, f"the float bias {layer.float_bias}", f"a bias of {spell_list(kinds)}")
        elif layer.bias is not None:
            if layer.bias.type not in kinds:
                yield Found(
                    layer.where, f"a bias of {layer.bias.type}", f"a bias of {spell_list(kinds)}", layer.bias.type
                )
            elif layer.bias.type == "int32" and rule.matched:
                yield from _match(layer, layer.input, layer.weight, layer.bias)


def _match(layer: GriddedLayer, fed: Grid, weight: Grid, bias: Grid) -> Faults:
    if bias.zero_point is not None and np.any(bias.zero_point):
        yield Found(layer.where, f"a bias with zero point {spell_values(bias.zero_point)}", "0 for int32")
    if fed.scale is None or weight.scale is None or bias.scale is None or fed.scale.size != 1:
        return
    product = fed.scale.reshape(-1).astype(np.float64) * weight.scale.reshape(-1)
    found = bias.scale.reshape(-1).astype(np.float64)
    if found.size not in (1, product.size) and product.size != 1:
        yield Found(layer.where, f"{found.size} scales of its bias", f"{product.size}, as of its weight")
    elif not np.allclose(found, product, rtol=ROUNDING, atol=0):
        with np.errstate(divide="ignore", invalid="ignore"):  # of scales that are 0, which another rule tells
            worst = int(np.argmax(np.abs(found - product) / product))
        pair = (np.broadcast_to(each, max(found.size, product.size))[worst] for each in (found, product))
        spelled = [f"{value:.6g}" for value in pair]
        allowed = f"{spelled[1]}, the scale of its input times that of its weight"
        yield Found(layer.where, f"a bias of scale {spelled[0]}", allowed)


def _find_axis(layer: GriddedLayer, rule: WeightScales, rank: int) -> int | None:
    """The axis of a layer's channels in its weight as the rule names it; None where it names none."""
    axis = rule.axes.get(layer.node.op_type)
    if axis is None:
        return None
    axis %= rank
    turned = layer.node.op_type == "Gemm" and attribute_of(layer.node, "transB", 0)
    return rank - 1 - axis if turned else axis


def _weights(graph: GriddedGraph) -> Iterator[tuple[GriddedLayer, Grid]]:
    return ((layer, layer.weight) for layer in graph.layers() if layer.weight is not None)
