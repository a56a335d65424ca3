"""What the model around a body says of it: grids of tensors on both sides, and which layers are in front and behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import GraphProto, NodeProto

from ..graph.around import hands_on_unsigned, pair_carried
from ..graph.bodies import Body, find_graph, list_bodies
from ..graph.index import is_op
from ..graph.layers import follow_layers, trace_layers
from ..spec import Around, QParams
from .prepared import Prepared
from .stages import Reconstruction

# A grid on which a Loop begins and ends may end so far short of what it carries in between, as a share of its width.
SHORT = 1 / 16


def describe_around(
    prepared: Prepared,
    found: Reconstruction,
    given: tuple[Body, Mapping[str, str]],
    range_of: Callable[[Body, str], tuple[float, float]],
) -> Around:
    """What a body is to know. given: the body, and the names in the quantized model of what it reads from outside.

    range_of: the ends of an input of the body.
    """
    (body, names), model = given, prepared.model
    node = next(each for each in model.graph.node if each.name == body.owner)
    graph, outer = find_graph(model, body), prepared.run.around or Around()
    layers = {each.name for each in found.scheme.stored} | {each.owner for each in list_bodies(model)}
    _, after = follow_layers(model.graph, layers, outer.behind)
    _, before = trace_layers(model.graph, layers, outer.ahead)
    own = found.grids.activations
    grids = {name: own[name] for name, now in names.items() if now != name and name in own}
    grids |= {name: outer.grids[name] for name in names if name in outer.grids and name not in own}
    carried = pair_carried(node)
    first = 1 if is_op(node, "Loop") else 0  # output, behind the condition
    inputs = [value.name for value in graph.input][2 * first :]
    outputs = [value.name for value in graph.output][first:]
    ties = []
    for number, (start, end) in enumerate(carried):
        unsigned = start in found.scheme.nonnegative and hands_on_unsigned(node, number)
        ties.append((inputs[number], outputs[number], unsigned))
        if _are_one(own.get(start), own.get(end)) and _holds(own[start], range_of(body, inputs[number])):
            grids |= dict.fromkeys((inputs[number], outputs[number]), own[start])
    if is_op(node, "If"):
        outside = {**outer.grids, **own}
        grids |= {name: outside[now] for name, now in zip(outputs, node.output, strict=True) if now in outside}
    return Around(
        inside=True,
        grids=grids,
        ties=tuple(ties),
        behind=frozenset({*after.intersection(names), *inputs[: len(carried)], *_list_scanned(node, graph, after)}),
        ahead=frozenset(
            name for number, name in enumerate(outputs) if number < len(carried) or node.output[number] in before
        ),
    )


def _list_scanned(node: NodeProto, graph: GraphProto, after: set[str]) -> list[str]:
    """The inputs of a Scan's body that are slices of what depends on layers."""
    if not is_op(node, "Scan"):
        return []
    return [value.name for value, given in zip(graph.input, node.input, strict=True) if given in after]


def _are_one(first: QParams | None, other: QParams | None) -> bool:
    if first is None or other is None or first.spec != other.spec:
        return False
    return bool(first.scale == other.scale and first.zero_point == other.zero_point)


def _holds(grid: QParams, ends: tuple[float, float]) -> bool:
    """Whether a grid holds these values, but for a little."""
    scale, zero = float(grid.scale), int(grid.zero_point)
    low, high = (grid.spec.qmin - zero) * scale, (grid.spec.qmax - zero) * scale
    room = SHORT * (high - low)
    return low - room <= ends[0] and ends[1] <= high + room
