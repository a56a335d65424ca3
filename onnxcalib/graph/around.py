"""What the graph around a body decides of its scheme: tensors have one grid on both sides, and from turn to turn.

Otherwise a value would be rounded on one grid, and at once on another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from onnx import NodeProto

from ..spec import Around, QuantScheme
from .fusion import upper_bound
from .index import Index, attribute_of, is_op

Ties = tuple[tuple[str, str, bool], ...]


def fit_around(scheme: QuantScheme, index: Index, around: Around | None) -> QuantScheme:
    """The scheme, with what the graphs around the body and inside of it say; ``index``: the graph's."""
    ties = (*(around.ties if around else ()), *find_outer_ties(scheme, index))
    scheme = _tie(scheme, ties) if ties else scheme
    fixed = dict(scheme.fixed)
    for tensor, grid in around.grids.items() if around else ():
        members = scheme.members_of(tensor)
        if scheme.activations.get(tensor) != grid.spec or not fixed.keys().isdisjoint(members):
            continue
        negative = bool(grid.zero_point.any()) and not scheme.nonnegative.keys().isdisjoint(members)
        made = [index.producer[each] for each in members if each in index.producer]
        if not negative and not any(is_op(node, "Concat") for node in made):
            fixed |= dict.fromkeys(members, (float(grid.scale), int(grid.zero_point)))
    return scheme if fixed == scheme.fixed else replace(scheme, fixed=fixed)


def _tie(scheme: QuantScheme, ties: Iterable[tuple[str, str, bool]]) -> QuantScheme:
    """The scheme in which the tensors of each pair share a grid, where their specs are equal and both have signs."""
    shared = [*scheme.shared]
    for given, made, unsigned in ties:
        spec = scheme.activations.get(given)
        if spec is None or scheme.activations.get(made) != spec or given == made:
            continue
        sets = [next((each for each in shared if name in each), (name,)) for name in (given, made)]
        bounds = {scheme.nonnegative[each] for each in (*sets[0], *sets[1]) if each in scheme.nonnegative}
        if bounds != ({math.inf} if unsigned else set()) or sets[0] == sets[1]:
            continue
        shared = [each for each in shared if each not in sets] + [(*sets[0], *sets[1])]
    return replace(scheme, shared=tuple(shared))


def find_outer_ties(scheme: QuantScheme, index: Index) -> Ties:
    """What a Loop or a Scan of the graph begins with and ends with, and whether neither can be negative."""
    found = []
    for node in index.nodes.values():
        for number, (given, made) in enumerate(pair_carried(node)):
            own = index.producer.get(given)
            if own is None or given not in scheme.activations or made not in scheme.activations:
                continue
            found.append((given, made, scheme.nonnegative.get(given) == math.inf and hands_on_unsigned(node, number)))
    return tuple(found)


def pair_carried(node: NodeProto) -> list[tuple[str, str]]:
    """(first value, last value) of what a Loop or a Scan carries from turn to turn."""
    if is_op(node, "Loop"):
        given = list(node.input[2:])
    elif is_op(node, "Scan"):
        given = list(node.input[: len(node.input) - attribute_of(node, "num_scan_inputs", 1)])
    else:
        return []
    return list(zip(given, node.output, strict=False))


def hands_on_unsigned(node: NodeProto, number: int) -> bool:
    """Whether what a turn hands on as this carried value is never negative."""
    body = attribute_of(node, "body", None)
    return upper_bound(Index(body), body.output[number + is_op(node, "Loop")].name) == math.inf
