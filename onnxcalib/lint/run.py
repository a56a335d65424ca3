"""Apply all rules of a target to a file."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, get_args

from onnx import ModelProto

from ..errors import ModelError, escape_controls
from ..graph.inspect.grids import GriddedGraph, read_graphs
from ..graph.load import is_quantized, load_model
from ..targets import LintRecord, Target, Violation, load_target
from ..targets.rules import Level, Rule
from . import activations, groups, linear, shifts, weights, whole
from .found import Faults, Found
from .names import check_names
from .plain import make_plain

LEVELS: tuple[Level, ...] = get_args(Level)
# The kind of a rule, as targets.rules.Rules names it -> what judges it, in the same order.
CHECKS: dict[str, Callable[[GriddedGraph, Any], Faults]] = {
    "opset": whole.check_opset,
    "static_shapes": whole.check_static_shapes,
    "operators": whole.check_operators,
    "attributes": whole.check_attributes,
    "pairs": linear.check_pairs,
    "positive_scales": linear.check_positive_scales,
    "explicit_zero_points": linear.check_explicit_zero_points,
    "own_zero_points": linear.check_own_zero_points,
    "activation_types": activations.check_activation_types,
    "activation_per_tensor": activations.check_activation_per_tensor,
    "activation_zero_points": activations.check_activation_zero_points,
    "least_range": activations.check_least_range,
    "fixed_grids": activations.check_fixed_grids,
    "weight_types": weights.check_weight_types,
    "weight_scales": weights.check_weight_scales,
    "weight_zero_points": weights.check_weight_zero_points,
    "biases": weights.check_biases,
    "power_of_two": linear.check_power_of_two,
    "quantized_inputs": groups.check_quantized_inputs,
    "whole_units": groups.check_whole_units,
    "residual_inputs": groups.check_residual_inputs,
    "quantized_outputs": groups.check_quantized_outputs,
    "float_outputs": groups.check_float_outputs,
    "even_bits": groups.check_even_bits,
    "aligned": groups.check_aligned,
    "shift_cut": shifts.check_shift_cut,
    "shift_bias": shifts.check_shift_bias,
    "shift_read": shifts.check_shift_read,
    "shift_write_add": shifts.check_shift_write_add,
    "shift_write_mul": shifts.check_shift_write_mul,
    "shift_swish": shifts.check_shift_swish,
    "hard_sigmoid": shifts.check_hard_sigmoid,
}


def check_target(model: str | Path | ModelProto, target: str | Path | Target) -> LintRecord:
    """Every rule of a target that can be read off a quantized file, whichever tool made it; nothing is run.

    target: a name, or the path of a TOML file. Raises ConfigError, and ModelError for a file that cannot be read, is
    not quantized, or has functions that cannot be put in place.
    """
    chosen = load_target(target)
    source = model if isinstance(model, ModelProto) else Path(model)
    loaded = load_model(source)
    name = loaded.graph.name if isinstance(source, ModelProto) else str(source)
    if not is_quantized(loaded):
        raise ModelError(
            f"{name}: found no quantized operator; a quantized model is needed to hold it to target {chosen.name};"
            " quantize it first"
        )
    return check_loaded(loaded, chosen, name)


def check_loaded(model: ModelProto, target: Target, name: str, *, in_float: Set[str] = frozenset()) -> LintRecord:
    """As ``check_target``, of a model that is loaded, which stays as it is; one that is not quantized does not pass.

    in_float: names of nodes that are float on purpose: what is slower there for a rule is no more than advice.
    """
    model = make_plain(model, name)
    check_names(target)
    rules, graphs = target.list_rules(), read_graphs(model)
    meant = [{graph.spell(node) for node in graph.graph.node if node.name in in_float} for graph in graphs]
    violations = [
        _tell(rule, rules[rule], found, places)
        for rule in rules
        for graph, places in zip(graphs, meant, strict=True)
        for found in _tell_once(graph, CHECKS[rule](graph, rules[rule]))
    ]
    judged, unjudged = whole.count_judged(model, target.rules.operators)
    violations.sort(key=lambda each: LEVELS.index(each.level))
    return LintRecord(target.name, name, tuple(rules), tuple(dict.fromkeys(violations)), judged, unjudged)


def _tell_once(graph: GriddedGraph, faults: Faults) -> Faults:
    """Without what a DequantizeLinear has in common with its QuantizeLinear, which is told alone: one mends both."""
    told, partners = dict.fromkeys(faults), {grid.where: grid.made_by for grid in graph.grids}
    return (each for each in told if each._replace(where=partners.get(each.where, "")) not in told)


def _tell(name: str, rule: Rule, found: Found, meant: Set[str]) -> Violation:
    where, what, allowed, source = map(escape_controls, (found.where, found.found, found.allowed, rule.source))
    level = found.level or rule.levels.get(found.type, rule.level)  # type: ignore[call-overload]
    if level == "slower" and found.where in meant:
        level = "advice"
    return Violation(name, where, what, allowed, source, level)
