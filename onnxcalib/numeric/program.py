"""The integer program over bits: one candidate for each set of layers (Hubara et al. 2021, eq. 5 and 6).

With binaries I_ln, 1 where set l takes candidate n:

    minimise sum_ln I_ln value_ln    with sum_n I_ln = 1 for every l
                                     and sum_ln I_ln row_ln <= limit for every row

Values are losses and rows costs, or the other way round. In flat arrays the candidates of all sets lie one behind the
other, (candidates,); a choice (sets,) has for each set the index of a candidate within the set.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cvxpy
import numpy as np
from scipy import sparse

# Most sets for which the program is solved exactly. With more its relaxation is rounded, and the bound tells the gap.
MOST_SETS = 2000
# Time limit of one call of the solver.
SECONDS = 60.0
# By how much HiGHS may violate a row, and two totals may differ to be a tie, in the scaled program.
TOLERANCE = 1e-9
# HiGHS's tolerance may give a choice beyond a limit: then it is called again, with the limit lowered by twice as much.
RETRIES = 5
# Weight from which the relaxation has decided on a candidate.
WHOLE = 1 - 1e-6
OPTIONS = {"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE, "threads": 1}
EXACT = {"mip_rel_gap": 0.0, "mip_abs_gap": 0.0, "mip_feasibility_tolerance": TOLERANCE}

Table = Sequence[Sequence[float]]  # of each set, a number for each candidate
Row = tuple[np.ndarray, float]  # a number for each candidate (candidates,), and the limit on the total of those chosen


class InfeasibleError(ValueError):
    """No choice is within all limits.

    least: of each row, the least total within the other rows' limits, or without them where these allow no choice.
    """

    def __init__(self, least: Sequence[float]) -> None:
        super().__init__(f"no choice is within all limits; totals can be {list(least)}")
        self.least = tuple(least)


@dataclass(frozen=True)
class Choice:
    """The index of a candidate for each set, the total ``value``, and a proven lower bound of the least total.

    The bound equals the value where the program was solved exactly.
    """

    candidates: tuple[int, ...]
    value: float
    bound: float


def choose(
    values: Table,
    rows: Sequence[Table] = (),
    limits: Sequence[float] = (),
    *,
    ties: Table | None = None,
    most_sets: int = MOST_SETS,
) -> Choice:
    """The choice of least total value whose row totals are within the limits.

    A candidate with an infinite value is never chosen. ``ties``: of all choices of the least value, the one with the
    least total of these. With more than ``most_sets`` sets, or where time runs out, the linear relaxation is rounded,
    and ties stay as they are. Raises InfeasibleError.
    """
    program = _Program(values, rows, limits)
    choice = program.solve(program.values, program.rows) if len(values) <= most_sets else None
    if choice is None:
        choice, bound = program.round_relaxation()
    else:
        if ties is not None:
            choice = program.break_ties(choice, _flatten(ties))
        bound = program.total(program.values, choice)
    return Choice(tuple(map(int, choice)), program.total(program.values, choice), bound)


def _flatten(table: Table) -> np.ndarray:
    return np.concatenate([np.asarray(of_set, np.float64) for of_set in table])


class _Program:
    """The program in flat arrays: ``starts`` (sets,) is each set's first candidate, ``owner`` (candidates,) its set.

    Candidates of an infinite value are not ``allowed``, and have a value of 0.
    """

    def __init__(self, values: Table, rows: Sequence[Table], limits: Sequence[float]) -> None:
        counts = [len(of_set) for of_set in values]
        self.starts = np.cumsum([0, *counts[:-1]])
        self.owner = np.repeat(np.arange(len(counts)), counts)
        self.values = _flatten(values)
        self.allowed = np.isfinite(self.values)
        self.values = np.where(self.allowed, self.values, 0.0)
        self.rows: list[Row] = [(_flatten(row), float(limit)) for row, limit in zip(rows, limits, strict=True)]
        floors = [float(self.floor(row).sum()) for row, _ in self.rows]
        if any(floor > limit for floor, (_, limit) in zip(floors, self.rows, strict=True)):
            raise InfeasibleError(floors)

    def floor(self, row: np.ndarray) -> np.ndarray:
        """The least number of each set's allowed candidates, (sets,)."""
        return np.minimum.reduceat(np.where(self.allowed, row, np.inf), self.starts)

    def total(self, row: np.ndarray, choice: np.ndarray) -> float:
        """The sum of a row's numbers over the chosen candidates."""
        return float(row[self.starts + choice].sum())

    def solve(self, objective: np.ndarray, rows: Sequence[Row]) -> np.ndarray | None:
        """The choice of least total objective within the rows' limits; None where time runs out.

        Raises InfeasibleError.
        """
        asked = list(rows)
        for attempt in range(RETRIES):
            status, weights, _ = self._call_solver(objective, asked, boolean=True)
            if status == cvxpy.INFEASIBLE and not attempt:
                raise InfeasibleError(self._least_totals(rows))
            if weights is None:
                return None
            choice = self._read(weights)
            beyond = [self.total(row, choice) - limit for row, limit in rows]
            if max(beyond, default=0.0) <= 0:
                return choice
            asked = [(row, limit - 2 * max(each, 0.0)) for (row, limit), each in zip(asked, beyond, strict=True)]
        return None

    def break_ties(self, choice: np.ndarray, ties: np.ndarray) -> np.ndarray:
        """Of all choices of the same value as this one, the choice of least total ``ties``."""
        best = self.total(self.values, choice)
        room = TOLERANCE * max(abs(best), np.abs(self.values).max())
        try:
            found = self.solve(ties, [*self.rows, (self.values, best + room)])
        except InfeasibleError:  # by the solver's tolerance: the choice itself is within all limits
            return choice
        return choice if found is None or self.total(ties, found) >= self.total(ties, choice) else found

    def round_relaxation(self) -> tuple[np.ndarray, float]:
        """The rounded linear relaxation, and the relaxation's value, which is a lower bound.

        The relaxation splits no more sets than there are rows. A split set takes the cheapest of its candidates that
        have weight. What the limits leave is then spent on one set after the other, where it lowers the value most.
        Raises InfeasibleError.
        """
        _, weights, bound = self._call_solver(self.values, self.rows, boolean=False)
        if weights is None:
            raise InfeasibleError([float(self.floor(row).sum()) for row, _ in self.rows])
        choice = self._read(weights)
        split = np.maximum.reduceat(weights, self.starts) < WHOLE
        cost = sum((self._scale(row, limit)[0] for row, limit in self.rows), np.zeros_like(self.values))
        cheapest = self._read(-np.where((weights > 1 - WHOLE) & self.allowed, cost, np.inf))
        choice = np.where(split, cheapest, choice)
        return self._spend(self._repair(choice)), bound

    def _call_solver(
        self, objective: np.ndarray, rows: Sequence[Row], *, boolean: bool
    ) -> tuple[str, np.ndarray | None, float]:
        """Status, the weight of each candidate (None without a solution), and the least total.

        boolean: weights are 0 or 1; else the linear relaxation's, from 0 to 1.
        """
        floor = self.floor(objective)
        spread = max(float(np.where(self.allowed, objective - floor[self.owner], 0).max()), np.finfo(float).tiny)
        x = cvxpy.Variable(len(self.owner), boolean=boolean)
        one_each = sparse.csr_matrix((np.ones(len(self.owner)), (self.owner, np.arange(len(self.owner)))))
        constraints = [one_each @ x == 1, x >= 0]
        allowed = self.allowed.copy()
        for row, limit in rows:
            scaled, room = self._scale(row, limit)
            allowed &= scaled <= room
            constraints.append(np.where(allowed, scaled, 0) @ x <= room)
        constraints.append(x <= allowed.astype(float))
        scaled = np.where(allowed, objective - floor[self.owner], 0) / spread
        problem = cvxpy.Problem(cvxpy.Minimize(scaled @ x), constraints)
        try:
            with warnings.catch_warnings():  # the status tells that time ran out
                warnings.simplefilter("ignore", UserWarning)
                problem.solve(cvxpy.HIGHS, **OPTIONS, **({"time_limit": SECONDS, **EXACT} if boolean else {}))
        except cvxpy.SolverError:
            return cvxpy.SOLVER_ERROR, None, np.nan
        # At its time limit HiGHS reports zeros, which are not a choice.
        weights = x.value if problem.status in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE) else None
        if weights is None or not np.allclose(np.add.reduceat(weights, self.starts), 1, atol=1e-4):
            return problem.status, None, np.nan
        return problem.status, weights, float(problem.value) * spread + float(floor.sum())

    def _scale(self, row: np.ndarray, limit: float) -> tuple[np.ndarray, float]:
        """The row less the least number of each set, and the limit on it, both over what the limit leaves above these.

        The scaled limit is 1, or 0 where the limit leaves nothing.
        """
        floor = self.floor(row)
        room = limit - floor.sum()
        above = np.where(self.allowed, row - floor[self.owner], 0.0)
        return (above / room, 1.0) if room > 0 else (above, 0.0)

    def _read(self, weights: np.ndarray) -> np.ndarray:
        """The choice of the candidate with the most weight in each set, the first of equals."""
        weights = np.where(self.allowed, weights, -np.inf)
        most = np.maximum.reduceat(weights, self.starts)
        index = np.where(weights == most[self.owner], np.arange(len(weights)), len(weights))
        choice: np.ndarray = np.minimum.reduceat(index, self.starts) - self.starts
        return choice

    def _least_totals(self, rows: Sequence[Row]) -> list[float]:
        """``InfeasibleError.least`` of the rows."""
        floors = [float(self.floor(row).sum()) for row, _ in rows]
        least = []
        for own, (row, _) in enumerate(rows):
            others = [other for number, other in enumerate(rows) if number != own]
            weights = self._call_solver(row, others, boolean=True)[1] if others else None
            least.append(floors[own] if weights is None else self.total(row, self._read(weights)))
        return least

    def _repair(self, choice: np.ndarray) -> np.ndarray:
        """Swap candidates one at a time until all limits hold, always the one that removes most excess for its value.

        Raises InfeasibleError where no swap helps.
        """
        for _ in range(len(choice)):
            changes = [self._changes(row, choice) for row, _ in self.rows]
            excesses = [self.total(row, choice) - limit for row, limit in self.rows]
            if max(excesses, default=0.0) <= 0:
                return choice
            units = [max(abs(limit), np.finfo(float).tiny) for _, limit in self.rows]
            reduced = sum(
                (max(excess, 0.0) - np.maximum(excess + change, 0.0)) / unit
                for excess, change, unit in zip(excesses, changes, units, strict=True)
            )
            price = np.maximum(self._changes(self.values, choice), 0.0) + np.finfo(float).tiny
            worth = np.where(self.allowed, reduced, 0.0) / price
            if not worth.max() > 0:
                break
            choice = self._swap(choice, int(worth.argmax()))
        raise InfeasibleError(self._least_totals(self.rows))

    def _spend(self, choice: np.ndarray) -> np.ndarray:
        """Swap candidates one at a time, each time where it lowers the value most within the limits."""
        for _ in range(len(choice)):
            gain = np.where(self.allowed, -self._changes(self.values, choice), 0.0)
            for row, limit in self.rows:
                gain = np.where(self._changes(row, choice) <= limit - self.total(row, choice), gain, 0.0)
            if not gain.max() > 0:
                break
            choice = self._swap(choice, int(gain.argmax()))
        return choice

    def _changes(self, row: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """By how much the row's total changes if a set takes this candidate, for each candidate."""
        changes: np.ndarray = row - row[self.starts + choice][self.owner]
        return changes

    def _swap(self, choice: np.ndarray, candidate: int) -> np.ndarray:
        """A copy of the choice in which the candidate at this flat index is taken by its set."""
        choice = choice.copy()
        choice[self.owner[candidate]] = candidate - self.starts[self.owner[candidate]]
        return choice
