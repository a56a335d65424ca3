"""Choose every set's candidate within the budgets, and check the choice as one model: losses may not add up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from ..numeric.program import Choice, InfeasibleError, choose
from ..spec import BitSet, Candidate

# The sum of the sets' losses and the stitched model's loss agree within this factor, or losses are measured again.
AGREEMENT = 1.1
ROUNDS = 3
# Rounds in which the file's size, of which a little depends on the choice as a whole, may move.
SIZE_ROUNDS = 5

Bits = tuple[Candidate, ...]  # of every set


@dataclass(frozen=True)
class Budgets:
    """Limits on the whole model, None where there is none; with ``loss`` it is the size that is to be least."""

    bytes: float | None = None
    bops: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Allocation:
    """The sets' bits, the program's bound on their loss (or size), predicted and measured loss, and rounds taken."""

    bits: Bits
    bound: float
    predicted_loss: float
    measured_loss: float
    rounds: int


def allocate(
    sets: Sequence[BitSet],
    budgets: Budgets,
    *,
    size_of: Callable[[Bits], int],
    loss_of: Callable[[Bits], float],
) -> Allocation:
    """Solve the program; where the stitched model loses other than predicted, measure around the solution and repeat.

    size_of and loss_of: bytes and divergence of the model with all sets at these bits. The best choice measured is
    kept. Raises ConfigError for budgets that no choice meets.
    """
    losses = [dict(each.losses) for each in sets]
    known: dict[Bits, float] = {}
    best: Allocation | None = None
    base = 0.0
    for number in range(1, ROUNDS + 1):
        bits, bound = _solve(sets, losses, base, budgets, size_of)
        predicted = base + _total(losses, bits)
        if bits not in known:
            known[bits] = loss_of(bits)
        found = Allocation(bits, bound, predicted, known[bits], number)
        if best is None or _is_better(found, best, budgets):
            best = found
        agrees = max(predicted, known[bits]) <= AGREEMENT * max(min(predicted, known[bits]), 1e-12)
        if agrees or number == ROUNDS:
            break
        base, losses = known[bits], _measure_around(sets, bits, known, loss_of)
    return best


def _is_better(one: Allocation, other: Allocation, budgets: Budgets) -> bool:
    if budgets.loss is None:
        return one.measured_loss < other.measured_loss
    return other.measured_loss > budgets.loss and one.measured_loss < other.measured_loss


def _total(losses: Sequence[Mapping[Candidate, float]], bits: Bits) -> float:
    return sum(of_set[candidate] for of_set, candidate in zip(losses, bits, strict=True))


def _measure_around(sets, bits: Bits, known: dict[Bits, float], loss_of) -> list[dict[Candidate, float]]:
    """What the stitched model's loss changes by where one set takes another of its candidates."""
    around = []
    for place, each in enumerate(sets):
        changes = {}
        for candidate in each.losses:
            other = (*bits[:place], candidate, *bits[place + 1 :])
            if other not in known:
                known[other] = loss_of(other)
            changes[candidate] = known[other] - known[bits]
        around.append(changes)
    return around


def _solve(sets, losses, base: float, budgets: Budgets, size_of) -> tuple[Bits, float]:
    """The program's answer and its bound, with the bytes that belong to no set measured on the answer itself."""
    names = [list(each.losses) for each in sets]
    loss = [[of_set[c] for c in own] for of_set, own in zip(losses, names, strict=True)]
    size = [[each.costs[c].bytes for c in own] for each, own in zip(sets, names, strict=True)]
    bops = [[each.costs[c].bops for c in own] for each, own in zip(sets, names, strict=True)]
    smallest = tuple(
        min(own, key=lambda c, each=each: each.costs[c].bytes) for each, own in zip(sets, names, strict=True)
    )
    rest = size_of(smallest) - sum(each.costs[c].bytes for each, c in zip(sets, smallest, strict=True))
    for _ in range(SIZE_ROUNDS):
        rows, limits, kinds = [], [], []
        if budgets.bytes is not None:
            rows, limits, kinds = [*rows, size], [*limits, budgets.bytes - rest], [*kinds, "max_size"]
        if budgets.bops is not None:
            rows, limits, kinds = [*rows, bops], [*limits, budgets.bops], [*kinds, "max_bops"]
        if budgets.loss is not None:
            rows, limits, kinds = [*rows, loss], [*limits, budgets.loss - base], [*kinds, "max_loss"]
        values, ties = (loss, size) if budgets.loss is None else (size, loss)
        try:
            answer: Choice = choose(values, rows, limits, ties=ties)
        except InfeasibleError as error:
            added = {"max_size": rest, "max_loss": base}
            raise ConfigError(_spell_infeasible(kinds, limits, error.least, added)) from None
        bits = tuple(own[n] for own, n in zip(names, answer.candidates, strict=True))
        over = size_of(bits) - (rest + sum(each.costs[c].bytes for each, c in zip(sets, bits, strict=True)))
        if over == 0 or (over < 0 and budgets.bytes is not None) or budgets.bytes is None:
            return bits, answer.bound + (base if budgets.loss is None else rest)
        rest += over
    return bits, answer.bound + base


def _spell_infeasible(kinds, limits, least, added: Mapping[str, float]) -> str:
    parts = []
    for kind, limit, low in zip(kinds, limits, least, strict=True):
        more = added.get(kind, 0.0)
        wanted, reachable = (f"{x + more:.4g}" if kind == "max_loss" else f"{x + more:,.0f}" for x in (limit, low))
        unit = {"max_size": " bytes", "max_bops": " bit operations", "max_loss": ""}[kind]
        parts.append(f"{kind}: found {wanted}{unit}; the smallest that can be reached is {reachable}{unit}")
    return "; ".join(parts) + "; raise it, or allow more candidates"
