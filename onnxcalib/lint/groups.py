"""Rules of what stands around a node: which inputs and outputs are quantized, and which share a grid."""

from __future__ import annotations

from onnx import NodeProto

from ..graph.fusion import data_inputs, moved_outputs
from ..graph.groups import only_leaves
from ..graph.index import is_op
from ..graph.inspect.grids import FUNCTIONS, NARROW, WIDE, Grid, GriddedGraph, list_sides
from ..graph.ops import AVERAGES, CONVOLUTIONS, QUANTIZE, SHAPE_READERS
from ..targets.rules import Aligned, EvenBits, QuantizedInputs, QuantizedOutputs, Rule, WholeUnits
from .found import Faults, Found, spell_list, spell_values


def check_quantized_inputs(graph: GriddedGraph, rule: QuantizedInputs) -> Faults:
    """Where one of a node's inputs is quantized, all of those that the rule names are."""
    for node in graph.graph.node:
        numbers = rule.operators.get(node.op_type) if not node.domain else None
        if numbers is None:
            continue
        names = [name for i, name in enumerate(node.input) if name and (not numbers or i in numbers)]
        makers = {name: graph.maker(name) for name in names}
        given = [grid for grid in makers.values() if grid is not None]
        missing = [name for name, grid in makers.items() if grid is None]
        alone = all(grid.role == "weight" and grid.stored in rule.weights_alone for grid in given)
        alone &= not rule.alone or node.op_type in rule.alone
        if given and missing and not alone:
            found = f"{spell_list(missing)} in float beside a quantized input"
            yield Found(graph.spell(node), found, "a DequantizeLinear in front of each of these inputs")
        beside = {grid.stored for grid in given if grid.role == "weight"} & set(rule.only_alone)
        if beside and any(grid.role == "activation" for grid in given):
            found = f"a weight of {spell_list(sorted(beside))} beside a quantized input"
            yield Found(graph.spell(node), found, "a float input beside such a weight")


def check_whole_units(graph: GriddedGraph, rule: WholeUnits) -> Faults:
    """Where a QuantizeLinear reads the result of a node, the inputs that the rule names are quantized too."""
    for node in graph.graph.node:
        numbers = rule.operators.get(node.op_type, ()) if not node.domain else ()
        if numbers and graph.quantizers(node.output[0]):
            named = [name for i, name in enumerate(node.input) if name and i in numbers]
            if missing := [name for name in named if graph.maker(name) is None]:
                found = f"{spell_list(missing)} in float in front of a QuantizeLinear"
                yield Found(graph.spell(node), found, "a DequantizeLinear in front of each of these inputs")


def check_residual_inputs(graph: GriddedGraph, rule: Rule) -> Faults:
    """An Add of two tensors, of which a quantized convolution makes one, reads the other one quantized."""
    layers = [layer for layer in graph.layers() if layer.weight is not None and is_op(layer.node, *CONVOLUTIONS)]
    quantized = {layer.node.output[0] for layer in layers}
    for node in graph.graph.node:
        computed = [name for name in node.input if name not in graph.index.initializers]
        if is_op(node, "Add") and len(computed) == 2 and not any(map(graph.maker, computed)):
            if not quantized.isdisjoint(computed):
                found = f"{spell_list(computed)} both in float"
                yield Found(graph.spell(node), found, "a DequantizeLinear in front of the residual input")


def check_quantized_outputs(graph: GriddedGraph, rule: QuantizedOutputs) -> Faults:
    """What these operators make of quantized inputs is quantized again, and nothing else reads it."""
    for node in graph.graph.node:
        fed = is_op(node, *rule.operators) and any(map(graph.maker, node.input))
        if is_op(node, *rule.at_exit) and only_leaves(graph.index, node.output[0]):
            continue
        for name in node.output if fed else ():
            if name and (reader := _find_float_reader(graph, name, rule.through)):
                yield Found(graph.spell(node), f"float output {name}, {reader}", "a QuantizeLinear alone behind it")


def _find_float_reader(graph: GriddedGraph, tensor: str, through: tuple[str, ...]) -> str:
    """Who uses a tensor as float, in words; empty where only a QuantizeLinear reads it."""
    waiting = [tensor]
    for name in waiting:  # which grows
        if name in graph.index.outputs:
            return "an output of the graph"
        for reader in graph.index.readers(name):
            if reader.op_type == QUANTIZE or is_op(reader, *SHAPE_READERS):
                continue
            if not is_op(reader, *through) or not graph.reads_alone(reader, name):
                return f"which {graph.spell(reader)} reads"
            waiting.append(reader.output[0])
    return ""


def check_float_outputs(graph: GriddedGraph, rule: Rule) -> Faults:
    """No output of the file is quantized."""
    for name in () if graph.within else graph.index.outputs:
        if (grid := graph.maker(name)) is not None:
            yield Found(grid.where, f"output {name} of the graph behind it", "outputs in float")


def check_even_bits(graph: GriddedGraph, rule: EvenBits) -> Faults:
    """What these operators compute with, and what they give, has 8 bits alone or 16 alone."""
    for node in graph.graph.node:
        sides = list_sides(graph, node) if is_op(node, *rule.operators) else []
        kinds = dict.fromkeys(grid.type for grid in sides)
        if not (kinds.keys().isdisjoint(NARROW) or kinds.keys().isdisjoint(WIDE)):
            yield Found(graph.spell(node), f"{spell_list(kinds)} on its sides", "as many bits on all of them")


def check_aligned(graph: GriddedGraph, rule: Aligned) -> Faults:
    """The quantized inputs and outputs of these operators share one grid."""
    for node in graph.graph.node:
        grids = _grids_around(graph, node) if is_op(node, *rule.operators) else []
        other = next((grid for grid in grids[1:] if not grid.equals(grids[0])), None)
        if other is not None:
            found = f"{_spell_grid(grids[0])} beside {_spell_grid(other)}"
            yield Found(graph.spell(node), found, "one scale and zero point on all its sides")


def _grids_around(graph: GriddedGraph, node: NodeProto) -> list[Grid]:
    """The grids of the activations that a node reads and makes; none where one side is float."""
    fed = [graph.maker(name) for name in data_inputs(node)]
    # A mean over a number that is no power of two is multiplied by a constant behind an average over one that is.
    passing = (*FUNCTIONS, "Mul") if is_op(node, *AVERAGES) else FUNCTIONS
    made = [graph.behind(name, passing) for name in moved_outputs(node)]
    given = [grid for grid in fed if grid is not None and grid.role == "activation"]
    behind = [grid for grid in made if grid is not None]
    return given + behind if given and behind else []


def _spell_grid(grid: Grid) -> str:
    return f"scale {spell_values(grid.scale)}, zero point {spell_values(grid.zero_point)} ({grid.tensor})"
