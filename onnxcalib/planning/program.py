"""The integer program over one model's sets: its budgets as constraints, and its solution within the file's real size.

Bytes that belong to no set, the overhead of the file, depend on the choice: the program is solved again when they turn
out more than was assumed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import ConfigError
from ..numeric.program import InfeasibleError, Table, choose
from ..spec import BitSet, Candidate
from .bits import Bits, find_largest, find_smallest, share_wide

# The program is solved at most so often: re-solves are allowed when the overhead outside the layer sets is larger than
# assumed.
SOLVES = 5
# How the numbers of each budget are written.
SPELLING = {
    "max_size": "{:,.0f} bytes".format,
    "max_bops": "{:,.0f} bit operations".format,
    "max_latency": "{:.4g} ms".format,
    "max_a16": "{:.4g}% of the elements".format,
    "max_loss": "{:.4g}".format,
}

NONE_HOLDS = "max_size: found no choice within it and the other budgets that holds when measured; raise one of them"


@dataclass(frozen=True)
class Budgets:
    """Limits on the whole model; None where there is none. With ``loss`` the size is minimized, else the loss.

    rest: milliseconds that belong to no set; ``milliseconds`` limits them together with the sets' own. a16: elements
    of activations in % that have 16 bits.
    """

    bytes: float | None = None
    bops: float | None = None
    milliseconds: float | None = None
    rest: float = 0.0
    loss: float | None = None
    a16: float | None = None


class Solution(NamedTuple):
    """A choice that an integer program found, and a proven lower bound of the objective."""

    bits: Bits
    bound: float


@dataclass(frozen=True)
class Prediction:
    """The loss of a choice is predicted as ``base`` and what each set adds to it at its candidate."""

    base: float
    added: Sequence[Mapping[Candidate, float]]

    @classmethod
    def by_sum(cls, sets: Sequence[BitSet]) -> Prediction:
        """The sum of the sets' own losses."""
        return cls(0.0, [each.losses for each in sets])

    def predict(self, bits: Bits) -> float:
        return self.base + sum(of_set[candidate] for of_set, candidate in zip(self.added, bits, strict=True))


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


class Program:
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
        every = max(1, sum(each.elements for each in sets))
        self.a16 = [[100 * each.wide_elements(c) / every for c in each.losses] for each in sets]
        self.smallest, self.largest = find_smallest(sets), find_largest(sets)

    def size(self, bits: Bits) -> int:
        """Bytes of the assembled model's file."""
        if bits not in self._sizes:
            self._sizes[bits] = self._size_of(bits)
        return self._sizes[bits]

    def affords(self, bits: Bits, budgets: Budgets) -> bool:
        """Whether the choice is within the budgets of bytes, bit operations, time, and activations of 16 bits."""
        costs = [each.costs[c] for each, c in zip(self.sets, bits, strict=True)]
        if budgets.bops is not None and sum(cost.bops for cost in costs) > budgets.bops:
            return False
        spent = budgets.rest + sum(cost.milliseconds for cost in costs)
        if budgets.milliseconds is not None and spent > budgets.milliseconds:
            return False
        if budgets.a16 is not None and share_wide(self.sets, bits) > budgets.a16:
            return False
        return self._fits(bits, budgets)

    def solve(self, prediction: Prediction, budgets: Budgets) -> Solution:
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

    def _solve_assuming(self, overhead: int, prediction: Prediction, budgets: Budgets) -> Solution:
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
            ("max_a16", self.a16, 0.0, budgets.a16),
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
