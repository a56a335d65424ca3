"""Choose every set's candidate within the budgets, and check the choice as one model: losses may not add up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..errors import ConfigError
from ..numeric.program import InfeasibleError, choose
from ..spec import BitSet, Candidate

# The sum of the sets' losses and the stitched model's loss agree within this factor, or losses are measured again.
AGREEMENT = 1.1
ROUNDS = 3
# Times that the program is solved again as the bytes of no set, of which few depend on the choice, turn out more.
SIZE_ROUNDS = 5
# Halvings of the range of sizes in which the smallest that keeps the agreement is looked for.
HALVINGS = 7
# Of each budget: how its numbers are written.
SPELLING = {
    "max_size": "{:,.0f} bytes".format,
    "max_bops": "{:,.0f} bit operations".format,
    "max_latency": "{:.4g} ms".format,
    "max_loss": "{:.4g}".format,
}

NONE_HOLDS = "max_size: found no choice within it and the other budgets that holds when measured; raise one of them"

Bits = tuple[Candidate, ...]  # of every set


@dataclass(frozen=True)
class Budgets:
    """Limits on the whole model, None where there is none; with ``loss`` it is the size that is to be least.

    milliseconds: of which ``rest`` are those of no set.
    """

    bytes: float | None = None
    bops: float | None = None
    milliseconds: float | None = None
    rest: float = 0.0
    loss: float | None = None


@dataclass(frozen=True)
class Allocation:
    """The sets' bits, the loss of the model with all of them as predicted and as measured, and the rounds taken.

    predicted_loss: in the first round the sum of the sets' losses; later it starts from what was measured on the choice
    before, and a choice that differs from that one in a single set was measured then. bound: what no choice within the
    budgets has a smaller sum than, or with a limit on the loss is smaller than.
    """

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

    size_of and loss_of: bytes and divergence of the model with all sets at these bits. Of all choices measured, the
    best within the budgets is taken. Raises ConfigError for budgets that no choice meets.
    """
    search = _Search(sets, budgets, size_of, loss_of)
    losses, base, bound, rounds = [each.losses for each in sets], 0.0, 0.0, 0
    for number in range(1, ROUNDS + 1):
        try:
            bits, least = search.solve(losses, base)
        except ConfigError:
            if not search.known or search.best() is None:
                raise
            break
        rounds, bound = number, least if number == 1 else bound
        predicted, measured = base + _total(losses, bits), search.measure(bits)
        search.predicted.setdefault(bits, predicted)
        if number == ROUNDS or max(predicted, measured) <= AGREEMENT * min(predicted, measured):
            break
        base, losses = measured, search.measure_around(bits)
    chosen = search.best()
    if chosen is None:
        least = min(search.known.values())
        raise ConfigError(f"max_loss: found {budgets.loss:.4g}; the smallest that was reached is {least:.4g}; raise it")
    measured = search.known[chosen]
    return Allocation(chosen, bound, search.predicted.get(chosen, measured), measured, rounds)


def allocate_for_agreement(
    sets: Sequence[BitSet],
    budgets: Budgets,
    least: float,
    *,
    size_of: Callable[[Bits], int],
    agreement_of: Callable[[Bits], float],
) -> tuple[Bits, float]:
    """The smallest choice found whose agreement, in %, is at least this, and the bound of the program that gave it.

    The program of least loss is solved for one size after the other, halving the range in which the answer lies.
    Raises ConfigError where none agrees as much.
    """
    search = _Search(sets, budgets, size_of, None)
    losses = [each.losses for each in sets]
    high = search.size(search.largest) if budgets.bytes is None else budgets.bytes
    low, chosen, best = float(search.size(search.smallest)), None, 0.0
    for size in [high, low, *[None] * HALVINGS]:
        size = (low + high) / 2 if size is None else size
        # What the user did not limit is none of the budgets that a refusal names.
        unlimited = budgets.bytes is None and size == high
        search.budgets = budgets if unlimited else replace(budgets, bytes=size)
        try:
            bits, bound = search.solve(losses, 0.0)
        except ConfigError:
            if chosen is None:
                raise
            low = max(low, size)
            continue
        agreement = agreement_of(bits)
        best = max(best, agreement)
        if agreement >= least:
            chosen, high = (bits, bound), min(high, search.size(bits))
        elif chosen is None:
            raise ConfigError(
                f"max_disagreement: found {100 - least:.4g}; within the other budgets the smallest that was reached is"
                f" {100 - best:.4g}; raise it, or allow more candidates"
            )
        else:
            low = max(low, size)
    return chosen


def solve_once(sets: Sequence[BitSet], budgets: Budgets, size_of: Callable[[Bits], int]) -> Bits:
    """The choice of least summed loss within the budgets, by the losses as they are. Raises ConfigError."""
    return _Search(sets, budgets, size_of, None).solve([each.losses for each in sets], 0.0)[0]


def _total(losses: Sequence[Mapping[Candidate, float]], bits: Bits) -> float:
    return sum(of_set[candidate] for of_set, candidate in zip(losses, bits, strict=True))


class _Search:
    """What is known of whole choices: sizes, and the losses of those that were measured."""

    def __init__(self, sets: Sequence[BitSet], budgets: Budgets, size_of, loss_of) -> None:
        self.sets, self.budgets, self._size_of, self._loss_of = sets, budgets, size_of, loss_of
        self.known: dict[Bits, float] = {}
        self.predicted: dict[Bits, float] = {}
        self._sizes: dict[Bits, int] = {}
        self.names = [list(each.losses) for each in sets]
        self.bytes = [[each.costs[c].bytes for c in own] for each, own in zip(sets, self.names, strict=True)]
        self.bops = [[each.costs[c].bops for c in own] for each, own in zip(sets, self.names, strict=True)]
        self.milliseconds = [
            [each.costs[c].milliseconds for c in own] for each, own in zip(sets, self.names, strict=True)
        ]
        finite = [
            [place for place, c in enumerate(own) if math.isfinite(each.losses[c])]
            for each, own in zip(sets, self.names, strict=True)
        ]
        self.smallest = self._pick(
            min(places, key=row.__getitem__) for places, row in zip(finite, self.bytes, strict=True)
        )
        self.largest = self._pick(
            max(places, key=row.__getitem__) for places, row in zip(finite, self.bytes, strict=True)
        )

    def _pick(self, places) -> Bits:
        return tuple(own[place] for own, place in zip(self.names, places, strict=True))

    def size(self, bits: Bits) -> int:
        if bits not in self._sizes:
            self._sizes[bits] = self._size_of(bits)
        return self._sizes[bits]

    def measure(self, bits: Bits) -> float:
        if bits not in self.known:
            self.known[bits] = self._loss_of(bits)
        return self.known[bits]

    def measure_around(self, bits: Bits) -> list[dict[Candidate, float]]:
        """What the stitched model's loss changes by where one set takes another of its candidates."""
        return [
            {c: self.measure((*bits[:place], c, *bits[place + 1 :])) - self.measure(bits) for c in own}
            for place, own in enumerate(self.names)
        ]

    def best(self) -> Bits | None:
        """Of the choices measured, the one within the budgets that loses least, or is smallest with a limit on that."""
        if self.budgets.loss is None:
            order = sorted(self.known, key=self.known.get)
        else:
            order = sorted(self.known, key=lambda bits: (self.size(bits), self.known[bits]))
        return next((bits for bits in order if self._fits(bits)), None)

    def _fits(self, bits: Bits) -> bool:
        return self._affords(bits) and (self.budgets.loss is None or self.known[bits] <= self.budgets.loss)

    def _affords(self, bits: Bits) -> bool:
        """Whether the choice is within the budgets of bytes, bit operations and time."""
        limits, costs = self.budgets, [each.costs[c] for each, c in zip(self.sets, bits, strict=True)]
        if limits.bops is not None and sum(cost.bops for cost in costs) > limits.bops:
            return False
        spent = limits.rest + sum(cost.milliseconds for cost in costs)
        if limits.milliseconds is not None and spent > limits.milliseconds:
            return False
        return limits.bytes is None or self.size(bits) <= limits.bytes

    def solve(self, losses: Sequence[Mapping[Candidate, float]], base: float) -> tuple[Bits, float]:
        """The program's answer and its bound; bytes that belong to no set are measured on the answer itself."""
        loss = [[of_set[c] for c in own] for of_set, own in zip(losses, self.names, strict=True)]
        values, ties = (loss, self.bytes) if self.budgets.loss is None else (self.bytes, loss)
        rest = min(self._rest(self.smallest), self._rest(self.largest))
        first = None
        for _ in range(SIZE_ROUNDS):
            rows = {
                "max_size": (self.bytes, self.budgets.bytes, rest),
                "max_bops": (self.bops, self.budgets.bops, 0.0),
                "max_latency": (self.milliseconds, self.budgets.milliseconds, self.budgets.rest),
                "max_loss": (loss, self.budgets.loss, base),
            }
            rows = {kind: row for kind, row in rows.items() if row[1] is not None}
            try:
                answer = choose(
                    values, [row for row, _, _ in rows.values()], [x - more for _, x, more in rows.values()], ties=ties
                )
            except InfeasibleError as error:
                if first is not None and self._affords(self.smallest):
                    return self.smallest, first
                raise ConfigError(_spell(rows, error.least)) from None
            bits = self._pick(answer.candidates)
            first = answer.bound + (base if self.budgets.loss is None else rest) if first is None else first
            if self.budgets.bytes is None or self.size(bits) <= self.budgets.bytes:
                return bits, first
            rest = max(self._rest(bits), rest + 1)
        if not self._affords(self.smallest):
            raise ConfigError(NONE_HOLDS)
        return self.smallest, first

    def _rest(self, bits: Bits) -> int:
        """Bytes that belong to no set."""
        return self.size(bits) - sum(each.costs[c].bytes for each, c in zip(self.sets, bits, strict=True))


def _spell(rows: Mapping[str, tuple], least: Sequence[float]) -> str:
    parts = []
    for (kind, (_, limit, more)), low in zip(rows.items(), least, strict=True):
        spell = SPELLING[kind]
        parts.append(f"{kind}: found {spell(limit)}; the smallest that can be reached is {spell(low + more)}")
    return "; ".join(parts) + "; raise it, or allow more candidates"
