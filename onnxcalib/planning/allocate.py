"""Choose one candidate for every set within the budgets, and check the choice on the assembled model.

The losses of the sets are measured one set at a time. They may not add up: the loss of the assembled model tells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..errors import ConfigError
from ..numeric.program import InfeasibleError, Table, choose
from ..spec import BitSet, Candidate
from .bits import Bits, find_largest, find_smallest

# Losses are measured again around a choice whose predicted and measured loss differ by more than this factor.
MISMATCH = 1.1
# Choices that are measured, each with all that differ from it in one set.
ROUNDS = 3
# The program is solved at most so often: re-solves are allowed when the overhead outside the layer sets is larger than
# assumed.
SOLVES = 5
# Halvings of the range of sizes that holds the smallest file of the wanted agreement.
HALVINGS = 7
# How the numbers of each budget are written.
SPELLING = {
    "max_size": "{:,.0f} bytes".format,
    "max_bops": "{:,.0f} bit operations".format,
    "max_latency": "{:.4g} ms".format,
    "max_loss": "{:.4g}".format,
}

NONE_HOLDS = "max_size: found no choice within it and the other budgets that holds when measured; raise one of them"


@dataclass(frozen=True)
class Budgets:
    """Limits on the whole model; None where there is none. With ``loss`` the size is minimized, else the loss.

    rest: milliseconds that belong to no set; ``milliseconds`` limits them together with the sets' own.
    """

    bytes: float | None = None
    bops: float | None = None
    milliseconds: float | None = None
    rest: float = 0.0
    loss: float | None = None


class Solution(NamedTuple):
    """A choice that an integer program found, and a proven lower bound of the objective."""

    bits: Bits
    bound: float


@dataclass(frozen=True)
class Allocation:
    """The chosen bits, the loss of the assembled model as predicted and as measured, and the rounds taken.

    bound: proven lower bound of the objective of the first program, which predicts by the sum of the sets' losses; the
    objective is bytes where the loss is limited. predicted_loss: by the program that found the choice; equal to
    ``measured_loss`` where the choice was measured as a neighbour of another.
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
    """Solve the program; while the measured loss differs from the predicted, measure around the choice and repeat.

    size_of and loss_of give the bytes and the divergence of the model assembled at these bits. The best of all measured
    choices within the budgets is returned. Raises ConfigError for budgets that no choice meets.
    """
    program = _Program(sets, size_of)
    choices = _MeasuredChoices(program, budgets, loss_of)
    prediction = _Prediction.by_sum(sets)
    first = solution = program.solve(prediction, budgets)
    rounds = 1
    while not choices.confirm(solution.bits, prediction) and rounds < ROUNDS:
        prediction = choices.predict_around(solution.bits)
        try:
            solution = program.solve(prediction, budgets)
        except ConfigError:
            if choices.find_best() is None:
                raise
            break
        rounds += 1
    best = choices.find_best()
    if best is None:
        least = min(choices.losses.values())
        raise ConfigError(f"max_loss: found {budgets.loss:.4g}; the smallest that was reached is {least:.4g}; raise it")
    measured = choices.losses[best]
    return Allocation(best, first.bound, choices.predicted.get(best, measured), measured, rounds)


def allocate_for_agreement(
    sets: Sequence[BitSet],
    budgets: Budgets,
    least: float,
    *,
    size_of: Callable[[Bits], int],
    agreement_of: Callable[[Bits], float],
) -> Solution:
    """The smallest choice found whose agreement, in %, is at least ``least``, and the bound of its program.

    The size is bisected: at each size the program of least loss is solved, and its choice is measured. Raises
    ConfigError where no choice meets the budgets, or where the largest one agrees too little.
    """
    bisection = _SizeBisection(_Program(sets, size_of), budgets, agreement_of)
    bisection.start(least)
    bisection.try_size(bisection.low, least)
    for _ in range(HALVINGS):
        bisection.try_size((bisection.low + bisection.high) / 2, least)
    return bisection.chosen


def solve_once(sets: Sequence[BitSet], budgets: Budgets, size_of: Callable[[Bits], int]) -> Bits:
    """The choice of the least sum of the sets' losses within the budgets; no loss is measured. Raises ConfigError."""
    return _Program(sets, size_of).solve(_Prediction.by_sum(sets), budgets).bits


@dataclass(frozen=True)
class _Prediction:
    """The loss of a choice is predicted as ``base`` and what each set adds to it at its candidate."""

    base: float
    added: Sequence[Mapping[Candidate, float]]

    @classmethod
    def by_sum(cls, sets: Sequence[BitSet]) -> _Prediction:
        """The sum of the sets' own losses."""
        return cls(0.0, [each.losses for each in sets])

    def predict(self, bits: Bits) -> float:
        return self.base + sum(of_set[candidate] for of_set, candidate in zip(self.added, bits, strict=True))


class _SizeBisection:
    """The range of sizes that holds the smallest file of the wanted agreement.

    A file of ``low`` bytes is too small, as far as is known; ``chosen``, of at most ``high`` bytes, agrees enough.
    """

    def __init__(self, program: _Program, budgets: Budgets, agreement_of: Callable[[Bits], float]) -> None:
        """Raises ConfigError for budgets that no choice meets."""
        self.program, self.budgets, self.agreement_of = program, budgets, agreement_of
        self.prediction = _Prediction.by_sum(program.sets)
        self.chosen = program.solve(self.prediction, budgets)
        most = program.size(program.largest) if budgets.bytes is None else budgets.bytes
        self.low = float(program.size(program.smallest))
        self.high = min(most, program.size(self.chosen.bits))

    def start(self, least: float) -> None:
        """Raise ConfigError where the choice of the user's own budgets agrees less than ``least``."""
        best = self.agreement_of(self.chosen.bits)
        if best < least:
            raise ConfigError(
                f"max_disagreement: found {100 - least:.4g}; within the other budgets the smallest that was reached is"
                f" {100 - best:.4g}; raise it, or allow more candidates"
            )

    def try_size(self, size: float, least: float) -> None:
        """Solve for files of at most ``size`` bytes, and move the end of the range on which the choice lies."""
        if self.low >= self.high:
            return
        try:
            solution = self.program.solve(self.prediction, replace(self.budgets, bytes=size))
        except ConfigError:
            self.low = size
            return
        if self.agreement_of(solution.bits) >= least:
            self.chosen, self.high = solution, min(self.high, self.program.size(solution.bits))
        else:
            self.low = size


class _MeasuredChoices:
    """Losses of the assembled models that were measured, and those predicted for the choices of the programs."""

    def __init__(self, program: _Program, budgets: Budgets, loss_of: Callable[[Bits], float]) -> None:
        self.program, self.budgets, self._loss_of = program, budgets, loss_of
        self.losses: dict[Bits, float] = {}
        self.predicted: dict[Bits, float] = {}

    def confirm(self, bits: Bits, prediction: _Prediction) -> bool:
        """Whether the loss of the assembled model is about as predicted."""
        predicted, measured = prediction.predict(bits), self._measure(bits)
        self.predicted.setdefault(bits, predicted)
        return max(predicted, measured) <= MISMATCH * min(predicted, measured)

    def predict_around(self, bits: Bits) -> _Prediction:
        """Predict from this choice, and from all choices that differ from it in one set, which are measured."""
        base = self._measure(bits)
        added = [
            {
                candidate: self._measure((*bits[:index], candidate, *bits[index + 1 :])) - base
                for candidate in candidates
            }
            for index, candidates in enumerate(self.program.candidates)
        ]
        return _Prediction(base, added)

    def find_best(self) -> Bits | None:
        """The measured choice of least loss within the budgets, or the smallest one where the loss is limited."""
        if self.budgets.loss is None:
            order = sorted(self.losses, key=self.losses.__getitem__)
        else:
            order = sorted(self.losses, key=lambda bits: (self.program.size(bits), self.losses[bits]))
        return next((bits for bits in order if self._is_within_budgets(bits)), None)

    def _is_within_budgets(self, bits: Bits) -> bool:
        limit = self.budgets.loss
        return self.program.affords(bits, self.budgets) and (limit is None or self.losses[bits] <= limit)

    def _measure(self, bits: Bits) -> float:
        if bits not in self.losses:
            self.losses[bits] = self._loss_of(bits)
        return self.losses[bits]


@dataclass(frozen=True)
class _Constraint:
    """A budget as a row of the integer program: the sum of the sets' ``costs`` and ``constant`` is at most ``limit``.

    budget: the name of the setting. costs: a number for every candidate of every set.
    """

    budget: str
    costs: Table
    constant: float
    limit: float

    def spell_reachable(self, total: float) -> str:
        """The limit, and the smallest that it could be, where the sets' costs can be ``total``."""
        spell = SPELLING[self.budget]
        return (
            f"{self.budget}: found {spell(self.limit)}; the smallest that can be reached is"
            f" {spell(total + self.constant)}"
        )


class _Program:
    """The integer program over the sets' candidates; the size of each choice is asked for once.

    candidates: of every set. smallest, largest: the choices of fewest and of most bytes, of finite losses.
    """

    def __init__(self, sets: Sequence[BitSet], size_of: Callable[[Bits], int]) -> None:
        self.sets, self._size_of = sets, size_of
        self._sizes: dict[Bits, int] = {}
        self.candidates = [list(each.losses) for each in sets]
        self.bytes = [[each.costs[c].bytes for c in each.losses] for each in sets]
        self.bops = [[each.costs[c].bops for c in each.losses] for each in sets]
        self.milliseconds = [[each.costs[c].milliseconds for c in each.losses] for each in sets]
        self.smallest, self.largest = find_smallest(sets), find_largest(sets)

    def size(self, bits: Bits) -> int:
        """Bytes of the assembled model's file."""
        if bits not in self._sizes:
            self._sizes[bits] = self._size_of(bits)
        return self._sizes[bits]

    def affords(self, bits: Bits, budgets: Budgets) -> bool:
        """Whether the choice is within the budgets of bytes, bit operations and time."""
        costs = [each.costs[c] for each, c in zip(self.sets, bits, strict=True)]
        if budgets.bops is not None and sum(cost.bops for cost in costs) > budgets.bops:
            return False
        spent = budgets.rest + sum(cost.milliseconds for cost in costs)
        if budgets.milliseconds is not None and spent > budgets.milliseconds:
            return False
        return self._fits(bits, budgets)

    def solve(self, prediction: _Prediction, budgets: Budgets) -> Solution:
        """The best choice by its predicted loss, or by bytes where the loss is limited; its size is checked.

        The overhead depends on the choice. The least overhead is assumed first; when the file turns out larger than its
        budget, the program is solved again with more. After SOLVES attempts the smallest choice is taken. Raises
        ConfigError for budgets that no choice meets.
        """
        overhead = min(self._overhead(self.smallest), self._overhead(self.largest))
        bound = 0.0
        for attempt in range(SOLVES):
            try:
                solution = self._solve_assuming(overhead, prediction, budgets)
            except ConfigError:
                if attempt and self.affords(self.smallest, budgets):
                    break
                raise
            if not attempt:  # the later bounds do not hold for choices of less overhead than they assume
                bound = solution.bound
            if self._fits(solution.bits, budgets):
                return Solution(solution.bits, bound)
            overhead = max(self._overhead(solution.bits), overhead + 1)
        if not self.affords(self.smallest, budgets):
            raise ConfigError(NONE_HOLDS)
        return Solution(self.smallest, bound)

    def _solve_assuming(self, overhead: int, prediction: _Prediction, budgets: Budgets) -> Solution:
        """The solution if every choice had this overhead. Raises ConfigError where there is none."""
        losses = [
            [added[c] for c in candidates] for added, candidates in zip(prediction.added, self.candidates, strict=True)
        ]
        minimize_loss = budgets.loss is None
        objective: Table = losses
        ties: Table = self.bytes
        if not minimize_loss:
            objective, ties = _exclude(self.bytes, losses), _replace_infinite(losses)
        constraints = self._constrain(losses, prediction.base, overhead, budgets)
        try:
            answer = choose(
                objective,
                [each.costs for each in constraints],
                [each.limit - each.constant for each in constraints],
                ties=ties,
            )
        except InfeasibleError as error:
            parts = [each.spell_reachable(total) for each, total in zip(constraints, error.least, strict=True)]
            raise ConfigError("; ".join(parts) + "; raise it, or allow more candidates") from None
        bits = tuple(own[index] for own, index in zip(self.candidates, answer.candidates, strict=True))
        return Solution(bits, answer.bound + (prediction.base if minimize_loss else overhead))

    def _constrain(self, losses: Table, base: float, overhead: int, budgets: Budgets) -> list[_Constraint]:
        """One constraint for each budget that is given."""
        rows: list[tuple[str, Table, float, float | None]] = [
            ("max_size", self.bytes, overhead, budgets.bytes),
            ("max_bops", self.bops, 0.0, budgets.bops),
            ("max_latency", self.milliseconds, budgets.rest, budgets.milliseconds),
            ("max_loss", _replace_infinite(losses), base, budgets.loss),
        ]
        return [_Constraint(name, costs, constant, limit) for name, costs, constant, limit in rows if limit is not None]

    def _fits(self, bits: Bits, budgets: Budgets) -> bool:
        return budgets.bytes is None or self.size(bits) <= budgets.bytes

    def _overhead(self, bits: Bits) -> int:
        """Bytes of the file that belong to no set."""
        return self.size(bits) - sum(each.costs[c].bytes for each, c in zip(self.sets, bits, strict=True))


def _exclude(values: Table, losses: Table) -> list[list[float]]:
    """The values, infinite for candidates whose loss is not finite: the program does not choose them."""
    return [
        [value if math.isfinite(loss) else math.inf for value, loss in zip(*of_set, strict=True)]
        for of_set in zip(values, losses, strict=True)
    ]


def _replace_infinite(losses: Table) -> list[list[float]]:
    """The losses with 0 for those that are not finite, which no row of the program may have."""
    return [[loss if math.isfinite(loss) else 0.0 for loss in of_set] for of_set in losses]
