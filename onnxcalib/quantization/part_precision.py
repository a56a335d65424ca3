"""What the parts of outputs need, such as a detector's scores, where grids of activations leave too little of one.

Two things help, and both are measured. The squared error of an activation clips its largest values where these are
rare, and in a detector the rare ones are those of what it finds: whole ranges keep them. And of some layers 256 levels
lose more than all others together: these stay in float, where the error that this saves is largest for its time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..config import FULL_BITS
from ..graph.index import Index, is_op
from ..graph.kernel_times import Shapes
from ..graph.units import Placement, find_units
from ..progress import track
from .cost_placement import Rounding, cut_units, name_nodes
from .last_layers import count_costs, find_nearest
from .part_errors import PartErrors, SetGrids
from .prepared import Prepared
from .speed import read_median
from .tensor_shapes import measure_shapes

# With so many dB of each part, by grids of activations alone, all stays as it is. Where one has less, the choice goes
# on up to GOAL_DB: weights take their share too, and other samples lose up to 5 dB more than those that it is made on.
ENOUGH_DB, GOAL_DB = 28.0, 32.0
# Layers are tried alone in as many of the runs to choose by as have these products in all, and in MOST_RUNS at most.
MOST_MACS, MOST_RUNS = 8 * 10**12, 8
# Whole ranges may cost so many times the error of usual ones, which clip more of other samples than of these.
MOST_MORE = 2.0
# What the choice must gain, in dB, on runs that it was not made on.
LEAST_GAIN_DB = 0.5
# No more is left in float than leaves the file at this share of the float model's time, by the model of time.
MOST_TIME = 0.8
# What an error of GOAL_DB is worth, as a share of the time of a file that leaves nothing in float; each is tried until
# GOAL_DB are reached.
WORTHS = tuple(2.0**power for power in range(-7, 7))
# What a layer's share of all weights is worth, as a share of the same time, and how much slower kernels in float are
# taken to be than the model of time says, so that integers win ties.
WEIGHTS_WORTH, HANDICAP = 0.25, 1.4
# These give values of a known range, of which samples leave little.
BOUNDED = ("Sigmoid", "HardSigmoid", "Softmax", "Tanh")
COARSE = "on 256 levels its activations leave too little of a part of the outputs; --placement all quantizes it"


def fit_parts(prepared: Prepared, wanted: Collection[str]) -> Prepared:
    """The model with whole ranges and with nodes in float where a part of an output needs them.

    wanted: layers that are not left in float. Nothing changes without parts, nor where each has ENOUGH_DB.
    """
    scheme, config = prepared.scheme, prepared.config
    few = any(spec.bits != FULL_BITS or spec.signed for spec in scheme.activations.values())
    if not prepared.parts or config.planned or config.range != "squared-error" or scheme.requantized or few:
        return prepared
    errors = PartErrors.of(prepared)
    if not errors.check:
        return prepared
    prepared = replace(prepared, statistics=prepared.collect(scheme))
    usual = _choose(prepared, errors)
    before = _Found.of(prepared, errors, usual)
    if before.db >= ENOUGH_DB:
        return prepared
    found = max(_search(prepared, errors, usual, wanted), key=lambda each: each.db)
    if found.db < before.db + LEAST_GAIN_DB:
        return prepared
    left = len(found.prepared.in_float) - len(prepared.in_float)
    prepared.run.observer.note(
        f"parts of outputs: {before.db:.1f} dB of the worst by grids of activations alone, {found.db:.1f} with"
        f" {len(found.prepared.whole)} whole ranges and {left} nodes in float"
    )
    return found.prepared


class _Found(NamedTuple):
    """A choice, and the SQNR of the worst part in dB, of the runs to choose by or of those to check on."""

    prepared: Prepared
    db: float

    @classmethod
    def of(cls, prepared: Prepared, errors: PartErrors, grids: SetGrids) -> _Found:
        error = max(errors.measure(grids, runs) for runs in (errors.chosen, errors.check))
        return cls(prepared, float(-10 * np.log10(error)) if error > 0 else np.inf)


def _search(prepared: Prepared, errors: PartErrors, usual: SetGrids, wanted: Collection[str]) -> Iterator[_Found]:
    """Ever more nodes in float, up to the first choice that reaches GOAL_DB or MOST_TIME."""
    shapes = measure_shapes(prepared.model, read_median(prepared.samples), prepared.run.threads)
    prepared, grids, costs = _choose_ranges(prepared, errors, usual, shapes)
    yield _Found.of(prepared, errors, grids)
    if prepared.config.placement == "all":
        return
    units = find_units(prepared.model, prepared.scheme, shapes)
    set_of = {tensor: each[0] for each in errors.sets for tensor in each}
    tried: set[tuple[str, ...]] = {()}
    for worth in WORTHS:
        names = _place(prepared, units, Rounding(set_of, costs), worth, wanted)
        if names is None:
            return
        if tuple(names) in tried:
            continue
        tried.add(tuple(names))
        placed = prepared.leave(dict.fromkeys(names, COARSE))
        on = {set_of[tensor] for tensor in placed.scheme.activations if tensor in set_of}
        kept = {name: grid for name, grid in grids.items() if name in on}
        found = _Found.of(placed, errors, kept)
        yield found
        if found.db >= GOAL_DB:
            return


def _place(
    prepared: Prepared, units: Placement, rounding: Rounding, worth: float, wanted: Collection[str]
) -> list[str] | None:
    """Nodes to leave in float where an error of GOAL_DB is worth that share of the time; None beyond MOST_TIME.

    None too where no layer would be quantized.
    """
    on_integers, in_float = (units.time([left] * len(units.units)) for left in (False, True))
    price = worth * on_integers * 10 ** (GOAL_DB / 10)
    most = on_integers + in_float  # more changes nothing, and would leave small times no digits
    priced = Rounding(rounding.set_of, {name: min(price * error, most) for name, error in rounding.costs.items()})
    left = cut_units(units, wanted, price=WEIGHTS_WORTH, handicap=HANDICAP, rounding=priced)
    some_layer = any(unit.weight and not here for unit, here in zip(units.units, left, strict=True))
    return name_nodes(prepared.model, units, left) if some_layer and units.time(left) <= MOST_TIME * in_float else None


def _choose_ranges(
    prepared: Prepared, errors: PartErrors, usual: SetGrids, shapes: Shapes
) -> tuple[Prepared, SetGrids, dict[str, float]]:
    """The model with whole ranges where these alone leave more of the worst part, and each set's grid and error.

    usual: grids without whole ranges. Sets behind the same layers are tried together. Each has an equal share of their
    error.
    """
    index = Index(prepared.model.graph)
    bounded = {t for t, node in index.producer.items() if is_op(node, *BOUNDED)}
    tensors = frozenset(t for members in errors.sets for t in members) - bounded
    whole = _choose(replace(prepared, whole=tensors), errors)
    groups: dict[frozenset[str], list[str]] = {}
    for name, *_ in errors.sets:
        groups.setdefault(frozenset(find_nearest(index, name)), []).append(name)
    chosen: set[str] = set()
    costs: dict[str, float] = {}
    macs = sum(each for each, _ in count_costs(prepared.model, index, shapes).values())
    some = errors.chosen[: min(max(MOST_MACS // (2 * len(groups) * max(macs, 1)), 1), MOST_RUNS)]
    for group in track(list(groups.values())):
        tried = [errors.measure({name: kind[name] for name in group}, some) for kind in (usual, whole)]
        is_whole = tried[1] <= MOST_MORE * tried[0]
        costs |= dict.fromkeys(group, tried[is_whole] / len(group))
        if is_whole:
            chosen.update(group)
    kept = frozenset(t for members in errors.sets if members[0] in chosen for t in members) & tensors
    grids = {name: (whole if name in chosen else usual)[name] for name, *_ in errors.sets}
    return replace(prepared, whole=kept), grids, costs


def _choose(prepared: Prepared, errors: PartErrors) -> SetGrids:
    grids = prepared.choose_grids(prepared.scheme, prepared.collect(prepared.scheme)).activations
    return {name: grids[name] for name, *_ in errors.sets}
