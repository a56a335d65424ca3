"""Rules of whole files and of operators: opset, shapes, operators that are not allowed, attributes."""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatchcase

from onnx import ModelProto, NodeProto

from ..graph.index import all_nodes
from ..graph.inspect.grids import GriddedGraph
from ..graph.inspect.integers import is_linear
from ..graph.load import inputs_of, is_quantized_op
from ..graph.ops import LINEAR_OPS
from ..spec import spell_shape
from ..targets.rules import Attributes, Operators, Opset, Rule
from .found import Faults, Found, spell_list


def check_opset(graph: GriddedGraph, rule: Opset) -> Faults:
    """The opset of the file, and of each type that ONNX's own operators quantize."""
    opset = next((entry.version for entry in graph.model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not graph.within and rule.least is not None and opset < rule.least:
        yield Found("file", f"opset {opset}", f"opset {rule.least} or later")
    if not graph.within and rule.most is not None and opset > rule.most:
        yield Found("file", f"opset {opset}", f"opset {rule.most} or earlier")
    early: dict[str, list[str]] = {}
    for grid in graph.grids:
        for kind in dict.fromkeys((grid.type, grid.stored)):
            least = rule.types.get(kind) if not grid.node.domain else None  # type: ignore[call-overload]
            if least is not None and opset < least:
                early.setdefault(kind, []).append(grid.where)
    for kind, (first, *others) in early.items():  # one opset mends all of them
        more = f", as in {len(others)} other nodes" if others else ""
        least = rule.types[kind]  # type: ignore[index]
        yield Found(first, f"{kind} at opset {opset}{more}", f"{kind} from opset {least} on", kind)


def check_static_shapes(graph: GriddedGraph, rule: Rule) -> Faults:
    """Every input of the file has fixed dimensions."""
    for spec in () if graph.within else inputs_of(graph.model):
        if spec.shape is None or None in spec.shape:
            shape = "no shape" if spec.shape is None else f"shape {spell_shape(spec.shape)}"
            yield Found(f"input {spec.name}", shape, "dimensions that are all fixed")


def check_operators(graph: GriddedGraph, rule: Operators) -> Faults:
    """No operator of the file is one of those that are not allowed."""
    for node in graph.graph.node:
        if _is_named(node, rule.forbidden):
            yield Found(graph.spell(node), node.op_type, f"no {spell_list(rule.forbidden)}")


def count_judged(model: ModelProto, rule: Operators | None) -> tuple[int, dict[str, int]]:
    """How many quantized operators the rules are about, and the others: how many of each."""
    known = () if rule is None else (*rule.forbidden, *rule.taken)
    judged, others = 0, Counter[str]()
    for node in filter(is_quantized_op, all_nodes(model.graph)):
        if is_linear(node, *LINEAR_OPS) or _is_named(node, known):
            judged += 1
        else:
            others[node.op_type] += 1
    return judged, dict(others)


def _is_named(node: NodeProto, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(node.op_type, each) for each in patterns)


def check_attributes(graph: GriddedGraph, rule: Attributes) -> Faults:
    """The attributes of these operators are written out."""
    for node in graph.graph.node:
        wanted = () if node.domain else rule.operators.get(node.op_type, ())
        present = {attribute.name for attribute in node.attribute}
        if missing := [name for name in wanted if name not in present]:
            yield Found(graph.spell(node), f"no {spell_list(missing)}", f"{spell_list(wanted)} written out")
