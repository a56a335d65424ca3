"""Leave in float what would run slower on integers, by a model of the time of kernels and of what stands between."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from onnx import ModelProto

from ..graph.index import is_op
from ..graph.kernel_times import Shapes
from ..graph.ops import INTEGER_OPS, LAYERS
from ..graph.units import Placement, Unit, find_units
from ..numeric.cut import NEVER, cut
from ..spec import QuantScheme

COSTS_MORE = "it would run slower on integers, with the Q/DQ that it needs; --placement all quantizes it"
# Less than this share of a run, and less than so many nanoseconds, are within the noise of any measurement: all that
# can be quantized is.
LEAST_SHARE, LEAST_TIME = 0.03, 20_000.0
# What a layer's share of all weights is worth, as a share of the time, and how much slower kernels in float are taken
# to be than the model of time says, which is not exact, so that integers win ties. From the first down: the next one is
# tried where the file would be slower than this share of the time that all of it takes in float.
TERMS, LEAST_GAIN = ((1.0, 1.4), (0.5, 1.4), (0.25, 1.4), (0.125, 1.4), (0.125, 1.2), (0.125, 1.0), (0.125, 0.8)), 0.8


@dataclass(frozen=True)
class Rounding:
    """What rounding costs beside time, in nanoseconds.

    set_of: tensor -> the name of the set with which it shares a grid. costs: name of a set -> what it costs to have it
    on its grid.
    """

    set_of: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, float] = field(default_factory=dict)

    def of_unit(self, unit: Unit) -> float:
        """Of what the unit gives; what it only moves is on its grid already."""
        moved = {self.set_of.get(t) for t in unit.inputs}
        made = {self.set_of.get(t) for t in unit.outputs} - moved
        return sum(self.costs.get(name, 0.0) for name in made if name is not None)

    def of_tensor(self, tensor: str) -> float:
        return self.costs.get(self.set_of.get(tensor, tensor), 0.0)


def choose_by_cost(model: ModelProto, scheme: QuantScheme, shapes: Shapes, wanted: Collection[str]) -> dict[str, str]:
    """Maps nodes that are faster in float to the reason; empty where that would save next to nothing.

    scheme: puts all on integers that can be. shapes: of all tensors in one run. wanted: layers to which the settings
    give bits, which are quantized.

    A layer stays in float only if the share of the time that this saves is larger than its share of all weights. Where
    the file would hardly be faster than the float model, less is enough: see TERMS.
    """
    placement = find_units(model, scheme, shapes)
    none, every = ([left] * len(placement.units) for left in (False, True))
    before, of_float, in_float = placement.time(none), placement.time(every), none
    least = max(LEAST_SHARE * before, LEAST_TIME)
    if placement.bound_gain() < least:  # most networks, and to look for a solver takes longer
        return {}
    for in_float in _cut_by_terms(placement, wanted):
        if placement.time(in_float) < LEAST_GAIN * of_float:
            break
    if before - placement.time(in_float) < least:
        return {}
    return dict.fromkeys(name_nodes(model, placement, in_float), COSTS_MORE)


def list_choices(model: ModelProto, scheme: QuantScheme, shapes: Shapes, wanted: Collection[str]) -> list[list[str]]:
    """Names of the nodes in float for each of the TERMS, the fewest first, and none before; see ``choose_by_cost``."""
    placement = find_units(model, scheme, shapes)
    found = [name_nodes(model, placement, in_float) for in_float in _cut_by_terms(placement, wanted)]
    return sorted([list(names) for names in {(), *map(tuple, found)}], key=lambda names: (len(names), names))


def _cut_by_terms(placement: Placement, wanted: Collection[str]) -> Iterator[list[bool]]:
    """Which units are in float by each of the TERMS, up to the first by which no layer would be quantized."""
    layers = [number for number, unit in enumerate(placement.units) if unit.weight]
    for price, handicap in TERMS:
        found = cut_units(placement, wanted, price=price, handicap=handicap)
        if all(found[number] for number in layers):
            return
        yield found


def name_nodes(model: ModelProto, placement: Placement, in_float: list[bool]) -> list[str]:
    """The nodes of the units in float that would be on integers by themselves, in graph order."""
    chosen = {unit.node for unit, left in zip(placement.units, in_float, strict=True) if left}
    kinds = (*LAYERS, *INTEGER_OPS, "HardSigmoid", "MaxPool")
    return [node.name for node in model.graph.node if node.name in chosen and is_op(node, *kinds)]


def cut_units(
    placement: Placement,
    wanted: Collection[str],
    *,
    price: float,
    handicap: float = 1.0,
    rounding: Rounding | None = None,
) -> list[bool]:
    """Which units are in float, at the least cost of time, of weights in float and of rounding.

    wanted: layers that are not in float. price and handicap: see TERMS.
    """
    units, rounding = placement.units, rounding or Rounding()
    price *= placement.time([False] * len(units)) / max(1, sum(unit.weight for unit in units))
    first = [unit.time.in_float * handicap + price * unit.weight for unit in units]
    first = [NEVER if u.node in wanted else cost for u, cost in zip(units, first, strict=True)]
    second = [unit.time.on_integers + rounding.of_unit(unit) for unit in units]
    borders: dict[tuple[int, int], float] = {}
    for border in placement.borders:
        readers = border.readers
        to_integers = border.to_integers + rounding.of_tensor(border.tensor)
        if border.maker is None or border.maker not in range(len(units)):
            if readers:  # an item that is on integers as soon as one of the readers is
                item = _add(first, second, here=0.0, there=to_integers)
                borders |= {(item, reader): NEVER for reader in readers}
            continue
        maker = border.maker
        if readers:
            item = _add(first, second)
            borders[maker, item] = to_integers
            borders |= {(item, reader): NEVER for reader in readers}
        if border.in_float:
            second[maker] += border.to_float
        elif readers:
            item = _add(first, second)  # in float as soon as one of the readers is
            borders[item, maker] = border.to_float
            borders |= {(reader, item): NEVER for reader in readers}
    return [bool(side) for side in cut(first, second, borders)[: len(units)]]


def _add(first: list[float], second: list[float], *, here: float = 0.0, there: float = 0.0) -> int:
    """Number of a new item that costs nothing of its own unless said."""
    first.append(here)
    second.append(there)
    return len(first) - 1
