"""Plan bits: the budgets in their units, the choice within them, and the curve of what every budget would buy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..bitplan import CANDIDATE_OF, FLOAT, BitPlan, Frontier, Point, SetRecord, Totals
from ..config import COSTS, QuantizeConfig
from ..errors import ConfigError
from ..graph.save import fingerprint, model_bytes
from ..spec import BitSet, Candidate
from ..values import COUNT, LATENCY, read_limit
from .allocate import Bits, Budgets, allocate, allocate_for_agreement, solve_once
from .assemble import Assembler
from .latency import Latencies

FLOAT_BITS = 32
# Budgets on the curve, from the smallest file to the widest.
POINTS = 21

NameOf = Callable[[str, Candidate], str]


def make_bit_plan(
    whole: Assembler,
    config: QuantizeConfig,
    latencies: Latencies | None,
    *,
    name_of: NameOf,
    excluded: Sequence[str],
) -> BitPlan:
    """The bits within the settings' budgets.

    latencies: None where none are limited. name_of: the bits that a layer has at a candidate, which are its own where
    settings say so; excluded: layers that stay in float. Raises ConfigError for budgets that cannot be met.
    """
    sets, eight = [keep_candidates(each, config.candidates) for each in whole.sets], widest(whole.sets)
    limits = _resolve(whole, eight, config, latencies)
    size, bops, milliseconds = (limits.get(name) for name in COSTS)
    budgets = Budgets(size, bops, milliseconds, whole.rest, config.max_loss)
    if config.max_disagreement is None:
        found = allocate(sets, budgets, size_of=whole.size, loss_of=whole.loss)
        bits, bound, predicted, rounds = found.bits, found.bound, found.predicted_loss, found.rounds
    else:
        least = 100 - config.max_disagreement
        bits, bound = allocate_for_agreement(sets, budgets, least, size_of=whole.size, agreement_of=whole.agreement)
        predicted, rounds = predict(sets, bits), 1
    names = {n: name_of(n, c) for each, c in zip(sets, bits, strict=True) for n in each.layers}
    losses = {"max_loss": config.max_loss, "max_disagreement": config.max_disagreement}
    timed, agreement = latencies is not None, config.max_disagreement is not None
    return BitPlan(
        model=fingerprint(whole.original),
        budgets=limits | {name: limit for name, limit in losses.items() if limit is not None},
        layers={**names, **dict.fromkeys(excluded, FLOAT)},
        totals=_sum_up(whole, bits, predicted, timed=timed, agreement=agreement),
        eight_bit=_sum_up(whole, eight, predict(whole.sets, eight), timed=timed, agreement=agreement),
        bound=bound,
        rounds=rounds,
        sets=record_sets(whole.sets, name_of, timed=timed),
    )


def _resolve(whole: Assembler, eight: Bits, config: QuantizeConfig, latencies: Latencies | None) -> dict[str, float]:
    """The budgets on costs, by name, in their own units."""
    of_float = model_bytes(whole.original), FLOAT_BITS**2 * sum(each.macs for each in whole.sets)
    of_eight = whole.size(eight), whole.bops(eight)
    limits = {}
    for name, in_float, in_eight in zip(COSTS, (*of_float, None), (*of_eight, None), strict=True):
        text = getattr(config, name)
        if text is None:
            continue
        limit = read_limit(text, LATENCY if name == "max_latency" else COUNT)
        if name == "max_latency":
            in_float, in_eight = latencies.of_float, whole.milliseconds(eight)
        if limit.of == "float" and in_float is None:
            raise ConfigError(
                f"{name}: found {text!r}, a share of the float model; {config.latencies} has not all times of it;"
                f" add rows of configuration float, or give milliseconds such as {LATENCY.example}"
            )
        limits[name] = limit.resolve(of_float=in_float or 0.0, of_eight=in_eight)
    return limits


def _sum_up(whole: Assembler, bits: Bits, predicted: float, *, timed: bool, agreement: bool) -> Totals:
    return Totals(
        predicted_loss=predicted,
        measured_loss=whole.loss(bits),
        bytes=whole.size(bits),
        bops=whole.bops(bits),
        milliseconds=whole.milliseconds(bits) if timed else None,
        agreement=whole.agreement(bits) if agreement else None,
    )


def trace_frontier(whole: Assembler, config: QuantizeConfig, name_of: NameOf) -> Frontier:
    """The least sum of losses for sizes from the smallest file to that of eight bits, and the uniform choices.

    Solved from the losses of the sets alone: nothing is measured. A larger budget never has a larger loss.
    """
    sets = [keep_candidates(each, config.candidates) for each in whole.sets]
    finite = [{c: each.costs[c].bytes for c, loss in each.losses.items() if np.isfinite(loss)} for each in sets]
    smallest = tuple(min(of_set, key=of_set.get) for of_set in finite)
    best = tuple(min(each.losses, key=each.losses.get) for each in sets)
    points: list[Point] = []
    for budget in np.linspace(whole.size(smallest), max(whole.size(best), whole.size(smallest)), POINTS):
        bits = solve_once(sets, Budgets(bytes=float(budget)), whole.size)
        if not points or predict(sets, bits) < points[-1].loss:
            points.append(_point(whole, bits, name_of))
    uniform = {}
    for name in dict.fromkeys(config.candidates):
        bits = tuple(CANDIDATE_OF[name] if CANDIDATE_OF[name] in each.losses else max(each.losses) for each in sets)
        uniform[name] = _point(whole, bits, name_of)
    return Frontier(
        model=fingerprint(whole.original),
        float_bytes=model_bytes(whole.original),
        points=tuple(points),
        uniform=uniform,
    )


def _point(whole: Assembler, bits: Bits, name_of: NameOf) -> Point:
    layers = {name: name_of(name, c) for each, c in zip(whole.sets, bits, strict=True) for name in each.layers}
    loss = predict(whole.sets, bits)
    return Point(bytes=whole.size(bits), bops=whole.bops(bits), loss=loss if np.isfinite(loss) else None, layers=layers)


def predict(sets: Sequence[BitSet], bits: Bits) -> float:
    """The sum of the sets' losses."""
    return sum(each.losses[c] for each, c in zip(sets, bits, strict=True))


def widest(sets: Sequence[BitSet]) -> Bits:
    """Every set at the most bits that it has."""
    return tuple(max(each.losses) for each in sets)


def keep_candidates(each: BitSet, names: Sequence[str]) -> BitSet:
    """The set with the candidates that were asked for, or with what it has where these are none."""
    losses = {c: loss for c, loss in each.losses.items() if str(c) in names} or each.losses
    if not any(np.isfinite(loss) for loss in losses.values()):
        raise ConfigError(
            f"{each.layers[0]}: found outputs that are not finite at each of its candidates"
            f" {', '.join(map(str, losses))}; exclude the layer"
        )
    return replace(each, losses=losses)


def record_sets(sets: Sequence[BitSet], name_of: NameOf, *, timed: bool) -> tuple[SetRecord, ...]:
    """What each set loses and costs at each candidate."""

    def spell(each: BitSet, values: Mapping[Candidate, float | None]) -> dict[str, float | None]:
        return {name_of(each.layers[0], c): value for c, value in values.items()}

    return tuple(
        SetRecord(
            layers=each.layers,
            macs=each.macs,
            loss=spell(each, {c: loss if np.isfinite(loss) else None for c, loss in each.losses.items()}),
            bytes=spell(each, {c: cost.bytes for c, cost in each.costs.items()}),
            bops=spell(each, {c: cost.bops for c, cost in each.costs.items()}),
            milliseconds=spell(each, {c: cost.milliseconds for c, cost in each.costs.items()}) if timed else {},
        )
        for each in sets
    )
