"""The integer program over bits: one candidate for each set of layers (Hubara et al. 2021, eq. 5 and 6).

With binaries I of set l and candidate n: least ``sum_l,n I value`` with ``sum_n I = 1`` for every l and
``sum_l,n I row <= limit`` for every row. Value is the loss and rows are costs, or the other way round.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cvxpy
import numpy as np
from scipy import sparse

# Sets up to which the program is solved exactly; beyond, its relaxation is rounded, and the gap stated.
MOST_SETS = 2000
SECONDS = 60.0
# What HiGHS may violate a row by, and what two totals may differ by to be a tie; of the scaled program.
TOLERANCE = 1e-9
# A choice beyond a limit, by what the solver tolerates, is asked for again with the limit lowered by as much.
RETRIES = 5
# Of a candidate that the relaxation takes whole.
WHOLE = 1 - 1e-6
OPTIONS = {"primal_feasibility_tolerance": TOLERANCE, "dual_feasibility_tolerance": TOLERANCE, "threads": 1}
EXACT = {"mip_rel_gap": 0.0, "mip_abs_gap": 0.0, "mip_feasibility_tolerance": TOLERANCE}

Table = Sequence[Sequence[float]]  # for every set a number for every candidate
Row = tuple[np.ndarray, float]  # a number for every candidate, and the limit on their total


class InfeasibleError(ValueError):
    """No choice is within all limits; ``least``: what each row's total can be within the others', or else by itself."""

    def __init__(self, least: Sequence[float]):
        super().__init__(f"no choice is within all limits; totals can be {list(least)}")
        self.least = tuple(least)


@dataclass(frozen=True)
class Choice:
    """A candidate for each set, the total that was to be least, and what none can be below: the same if exact."""

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
    """The candidates of least total value within the limits on the totals of rows; of such, of least total ``ties``.

    An infinite value puts a candidate out of the question. Beyond ``most_sets`` sets, or where time runs out, the
    choice is that of the linear relaxation, rounded. Raises InfeasibleError.
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
    """The candidates of all sets side by side; those of a set begin at ``starts``. A choice counts within each set."""

    def __init__(self, values: Table, rows: Sequence[Table], limits: Sequence[float]):
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
        """The least number of each set."""
        return np.minimum.reduceat(np.where(self.allowed, row, np.inf), self.starts)

    def total(self, row: np.ndarray, choice: np.ndarray) -> float:
        return float(row[self.starts + choice].sum())

    def solve(self, objective: np.ndarray, rows: Sequence[Row]) -> np.ndarray | None:
        """The choice of least objective within the rows; None where time runs out. Raises InfeasibleError."""
        asked = list(rows)
        for attempt in range(RETRIES):
            status, weights, _ = self._run(objective, asked, boolean=True)
            if status == cvxpy.INFEASIBLE and not attempt:
                raise InfeasibleError(self._reach(rows))
            if weights is None:
                return None
            choice = self._read(weights)
            beyond = [self.total(row, choice) - limit for row, limit in rows]
            if max(beyond, default=0.0) <= 0:
                return choice
            asked = [(row, limit - 2 * max(each, 0.0)) for (row, limit), each in zip(asked, beyond, strict=True)]
        return None

    def break_ties(self, choice: np.ndarray, ties: np.ndarray) -> np.ndarray:
        """Of the choices of the same value, that of the least total ``ties``."""
        best = self.total(self.values, choice)
        room = TOLERANCE * max(abs(best), np.abs(self.values).max())
        found = self.solve(ties, [*self.rows, (self.values, best + room)])
        return choice if found is None or self.total(ties, found) >= self.total(ties, choice) else found

    def round_relaxation(self) -> tuple[np.ndarray, float]:
        """The relaxation's choice and value: it splits no more sets than there are rows, which take what is cheapest.

        What room that leaves is then spent on one set after the other, where it buys most. Raises InfeasibleError.
        """
        _, weights, bound = self._run(self.values, self.rows, boolean=False)
        if weights is None:
            raise InfeasibleError([float(self.floor(row).sum()) for row, _ in self.rows])
        choice = self._read(weights)
        split = np.maximum.reduceat(weights, self.starts) < WHOLE
        slim = sum((self._scale(row, limit)[0] for row, limit in self.rows), np.zeros_like(self.values))
        cheapest = self._read(-np.where((weights > 1 - WHOLE) & self.allowed, slim, np.inf))
        choice = np.where(split, cheapest, choice)
        return self._spend(self._repair(choice)), bound

    def _run(self, objective: np.ndarray, rows: Sequence[Row], *, boolean: bool):
        """Status, the weight of every candidate, and the least total; no weights where the solver has none to give."""
        floor = self.floor(objective)
        spread = max(float(np.where(self.allowed, objective - floor[self.owner], 0).max()), np.finfo(float).tiny)
        x = cvxpy.Variable(len(self.owner), boolean=boolean)
        places = (np.ones(len(self.owner)), (self.owner, np.arange(len(self.owner))))
        one_each = sparse.csr_matrix(places)
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
            with warnings.catch_warnings():  # that time ran out is told by the status
                warnings.simplefilter("ignore", UserWarning)
                problem.solve(cvxpy.HIGHS, **OPTIONS, **({"time_limit": SECONDS, **EXACT} if boolean else {}))
        except cvxpy.SolverError:
            return cvxpy.SOLVER_ERROR, None, np.nan
        # At a limit of time HiGHS reports zeros; they are no choice.
        weights = x.value if problem.status in (cvxpy.OPTIMAL, cvxpy.OPTIMAL_INACCURATE) else None
        if weights is None or not np.allclose(np.add.reduceat(weights, self.starts), 1, atol=1e-4):
            return problem.status, None, np.nan
        return problem.status, weights, float(problem.value) * spread + float(floor.sum())

    def _scale(self, row: np.ndarray, limit: float) -> tuple[np.ndarray, float]:
        """The row above its floor and its limit, in units of what the limit leaves: 1, or 0 where it leaves nothing."""
        floor = self.floor(row)
        room = limit - floor.sum()
        above = np.where(self.allowed, row - floor[self.owner], 0.0)
        return (above / room, 1.0) if room > 0 else (above, 0.0)

    def _read(self, weights: np.ndarray) -> np.ndarray:
        """The candidate of most weight in each set, the first of equals."""
        weights = np.where(self.allowed, weights, -np.inf)
        most = np.maximum.reduceat(weights, self.starts)
        place = np.where(weights == most[self.owner], np.arange(len(weights)), len(weights))
        return np.minimum.reduceat(place, self.starts) - self.starts

    def _reach(self, rows: Sequence[Row]) -> list[float]:
        floors = [float(self.floor(row).sum()) for row, _ in rows]
        least = []
        for place, (row, _) in enumerate(rows):
            others = [other for number, other in enumerate(rows) if number != place]
            weights = self._run(row, others, boolean=True)[1] if others else None
            least.append(floors[place] if weights is None else self.total(row, self._read(weights)))
        return least

    def _repair(self, choice: np.ndarray) -> np.ndarray:
        """Swaps, one at a time, until all limits hold: each time the one that costs least for what it mends."""
        for _ in range(len(choice)):
            state = [self._moves(row, choice) for row, _ in self.rows]
            before = [self.total(row, choice) - limit for row, limit in self.rows]
            if max(before, default=0.0) <= 0:
                return choice
            units = [max(abs(limit), np.finfo(float).tiny) for _, limit in self.rows]
            mended = sum(
                (max(b, 0.0) - np.maximum(b + move, 0.0)) / unit
                for b, move, unit in zip(before, state, units, strict=True)
            )
            price = np.maximum(self._moves(self.values, choice), 0.0) + np.finfo(float).tiny
            worth = np.where(self.allowed, mended, 0.0) / price
            if not worth.max() > 0:
                break
            choice = self._swap(choice, int(worth.argmax()))
        raise InfeasibleError(self._reach(self.rows))

    def _spend(self, choice: np.ndarray) -> np.ndarray:
        """Swaps, one at a time, that lower the value most within the limits."""
        for _ in range(len(choice)):
            gain = np.where(self.allowed, -self._moves(self.values, choice), 0.0)
            for row, limit in self.rows:
                gain = np.where(self._moves(row, choice) <= limit - self.total(row, choice), gain, 0.0)
            if not gain.max() > 0:
                break
            choice = self._swap(choice, int(gain.argmax()))
        return choice

    def _moves(self, row: np.ndarray, choice: np.ndarray) -> np.ndarray:
        """What the row's total changes by if a set takes another candidate, for every candidate."""
        return row - row[self.starts + choice][self.owner]

    def _swap(self, choice: np.ndarray, place: int) -> np.ndarray:
        choice = choice.copy()
        choice[self.owner[place]] = place - self.starts[self.owner[place]]
        return choice
