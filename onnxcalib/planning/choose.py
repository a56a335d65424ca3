"""Make the plan: budgets in their units, the choice within them, and the trade-off between size and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from ..bitplan import CANDIDATE_OF, FLOAT, TENSOR_BITS, BitPlan, Frontier, Point, SetBits, SetRecord, Totals
from ..config import COSTS, CandidateName, QuantizeConfig
from ..errors import ConfigError
from ..graph.save import fingerprint
from ..graph.stream import model_bytes
from ..spec import FLOAT_BITS, BitSet, Candidate
from ..values import COUNT, LATENCY, SIZE, read_limit
from .allocate import allocate, allocate_for_agreement, solve_once
from .assemble import Assembler
from .bits import Bits, find_smallest, find_uniform, find_widest, predict, share_wide
from .latency import Latencies
from .program import Budgets

# Sizes of the frontier, evenly spaced.
POINTS = 21

NameOf = Callable[[str, Candidate], CandidateName]  # a layer and a candidate -> the name of the bits that it has then
Value = TypeVar("Value")


def make_bit_plan(
    assembler: Assembler,
    config: QuantizeConfig,
    latencies: Latencies | None,
    *,
    name_of: NameOf,
    excluded: Sequence[str],
    in_float: Mapping[str, str],
) -> BitPlan:
    """Choose bits within the settings' budgets.

    latencies: None where time is not limited. name_of: a layer that the settings name keeps its own bits at every
    candidate. excluded: layers that stay in float. in_float: node that the tool itself leaves so -> why. Raises
    ConfigError for budgets that cannot be met.
    """
    sets, eight = [keep_candidates(each, config.candidates) for each in assembler.sets], find_widest(assembler.sets)
    limits = _resolve(assembler, eight, config, latencies)
    size, bops, milliseconds = (limits.get(name) for name in COSTS)
    budgets = Budgets(size, bops, milliseconds, assembler.rest, config.max_loss, config.max_a16)
    if config.max_disagreement is None:
        # A decoder has some 200 sets, and every measured choice takes its time.
        found = allocate(sets, budgets, size_of=assembler.size, loss_of=assembler.loss, around=not config.planned_alone)
        bits, bound, predicted, rounds = found.bits, found.bound, found.predicted_loss, found.rounds
    else:
        least = 100 - config.max_disagreement
        bits, bound = allocate_for_agreement(
            sets, budgets, least, size_of=assembler.size, agreement_of=assembler.agreement
        )
        predicted, rounds = predict(sets, bits), 1
    names = {n: name_of(n, c) for each, c in zip(sets, bits, strict=True) for n in each.layers}
    tensors = {each.tensors[0]: c.activation_bits for each, c in zip(sets, bits, strict=True) if not each.layers}
    others = {"max_a16": config.max_a16, "max_loss": config.max_loss, "max_disagreement": config.max_disagreement}
    timed, agreement = latencies is not None, config.max_disagreement is not None
    known = {"timed": timed, "agreement": agreement, "alone": config.planned_alone}
    totals = _sum_up(assembler, bits, predicted, **known)
    if totals.measured_loss is None:
        raise ConfigError(
            "plan: found outputs that are not finite with the bits that were chosen; finite ones are needed; exclude"
            " the layers that cause them, or give other candidates"
        )
    return BitPlan(
        model=fingerprint(assembler.original),
        budgets=limits | {name: limit for name, limit in others.items() if limit is not None},
        layers={**names, **dict.fromkeys(excluded, FLOAT)},
        tensors=tensors,
        in_float=dict(in_float),
        weight_symmetry=config.weight_symmetry if config.planned_alone else None,
        totals=totals,
        eight_bit=_sum_up(assembler, eight, predict(assembler.sets, eight), **known),
        bound=bound,
        rounds=rounds,
        sets=record_sets(assembler.sets, name_of, timed=timed),
    )


def _resolve(
    assembler: Assembler, eight: Bits, config: QuantizeConfig, latencies: Latencies | None
) -> dict[str, float]:
    """The budgets on costs by name, in bytes, bit operations and milliseconds."""
    macs = sum(each.macs for each in assembler.sets)
    of_float: dict[str, float | None] = {
        "max_size": model_bytes(assembler.original),
        "max_bops": FLOAT_BITS**2 * macs,
        "max_latency": None if latencies is None else latencies.of_float,
    }
    of_eight: dict[str, float] = {
        "max_size": assembler.size(eight),
        "max_bops": assembler.bops(eight),
        "max_latency": assembler.milliseconds(eight),
    }
    limits = {}
    for name in COSTS:
        text, in_float = getattr(config, name), of_float[name]
        if text is None:
            continue
        limit = read_limit(text, LATENCY if name == "max_latency" else SIZE if name == "max_size" else COUNT)
        if limit.of == "weight":
            # Bytes of nodes and names, which do not count, hardly depend on the bits.
            others = min(assembler.other_bytes(bits) for bits in (eight, find_smallest(assembler.sets)))
            limits[name] = limit.number * assembler.weights / 8 + others
            continue
        if limit.of == "float" and in_float is None:
            raise ConfigError(
                f"{name}: found {text!r}, a share of the float model; {config.latencies} lacks times of float layers;"
                f" add rows of configuration float, or give milliseconds such as {LATENCY.example}"
            )
        limits[name] = limit.resolve(of_float=in_float or 0.0, of_eight=of_eight[name])
    return limits


def _sum_up(assembler: Assembler, bits: Bits, predicted: float, *, timed: bool, agreement: bool, alone: bool) -> Totals:
    return Totals(
        predicted_loss=_drop_infinite(predicted),
        measured_loss=_drop_infinite(assembler.loss(bits)),
        bytes=assembler.size(bits),
        bops=assembler.bops(bits),
        milliseconds=assembler.milliseconds(bits) if timed else None,
        agreement=assembler.agreement(bits) if agreement else None,
        a16=share_wide(assembler.sets, bits) if any(each.elements for each in assembler.sets) else None,
        bits_per_weight=assembler.bits_per_weight(bits) if alone else None,
    )


def trace_frontier(assembler: Assembler, config: QuantizeConfig, name_of: NameOf) -> Frontier:
    """The least sum of losses for sizes from the smallest file to the file of least loss, and the uniform choices.

    Of the budgets, max_a16 alone limits them. No assembled model's loss is measured. The loss falls from point to
    point.
    """
    sets = [keep_candidates(each, config.candidates) for each in assembler.sets]
    smallest = assembler.size(find_smallest(sets))
    best = assembler.size(tuple(min(each.losses, key=each.losses.__getitem__) for each in sets))
    points: list[Point] = []
    least = math.inf
    for budget in np.linspace(smallest, max(best, smallest), POINTS):
        bits = solve_once(sets, Budgets(bytes=float(budget), a16=config.max_a16), assembler.size)
        if predict(sets, bits) < least:
            points.append(_make_point(assembler, bits, name_of))
            least = predict(sets, bits)
    uniform = {
        name: _make_point(assembler, find_uniform(sets, CANDIDATE_OF[name]), name_of)
        for name in dict.fromkeys(config.candidates)
    }
    return Frontier(
        model=fingerprint(assembler.original),
        float_bytes=model_bytes(assembler.original),
        points=tuple(points),
        uniform=uniform,
    )


def _make_point(assembler: Assembler, bits: Bits, name_of: NameOf) -> Point:
    layers = {name: name_of(name, c) for each, c in zip(assembler.sets, bits, strict=True) for name in each.layers}
    return Point(
        bytes=assembler.size(bits),
        bops=assembler.bops(bits),
        loss=_drop_infinite(predict(assembler.sets, bits)),
        layers=layers,
    )


def _drop_infinite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def keep_candidates(each: BitSet, names: Sequence[str]) -> BitSet:
    """The set with the candidates ``names`` alone; a set that has none of them keeps all that it has."""
    losses = {c: loss for c, loss in each.losses.items() if str(c) in names} or each.losses
    if not any(math.isfinite(loss) for loss in losses.values()):
        raise ConfigError(
            f"{each.name}: found outputs that are not finite at each of its candidates"
            f" {', '.join(map(str, losses))}; exclude the layer"
        )
    return replace(each, losses=losses)


def record_sets(sets: Sequence[BitSet], name_of: NameOf, *, timed: bool) -> tuple[SetRecord, ...]:
    """The loss and the costs of each set at each candidate."""

    def by_name(each: BitSet, values: Mapping[Candidate, Value]) -> dict[SetBits, Value]:
        return {name_of(each.layers[0], c) if each.layers else TENSOR_BITS[c]: value for c, value in values.items()}

    return tuple(
        SetRecord(
            layers=each.layers,
            macs=each.macs,
            loss=by_name(each, {c: _drop_infinite(loss) for c, loss in each.losses.items()}),
            bytes=by_name(each, {c: cost.bytes for c, cost in each.costs.items() if cost.bytes}),
            bops=by_name(each, {c: cost.bops for c, cost in each.costs.items()}),
            milliseconds=by_name(each, {c: cost.milliseconds for c, cost in each.costs.items()}) if timed else {},
            tensors=each.tensors,
            elements=each.elements,
        )
        for each in sets
    )
