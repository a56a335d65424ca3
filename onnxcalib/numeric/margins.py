"""Estimate how often the top class stays on other samples, from the margins of many samples and the errors of few."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .intervals import Interval, wilson_interval
from .metrics import HALF_TOLERANCE, SUM_TOLERANCE, find_class_rows, lay_rows

RIVALS = 8  # of the top class: with 4 or 16 the estimate is as good
POSITIONS = 32  # of one sample; a sample's positions depend on each other, so that more tell little
ROWS = 2**15  # answers that are kept; the share of so many is known to 0.1 points
ERRORS = 256  # that each margin meets
FEWEST = 8  # samples with errors: of fewer, a count says no less
SEED = 0
SORTED_AT_ONCE = 2**22  # values, so that large vocabularies need little memory
LEAST_LIKELY = 1e-3  # of the top class: a probability below that is no rival, and its logarithm may be any
# A sample whose margin is known tells as much as so many whose answer is counted, with margins that are spread evenly
# near 0 and errors of a normal distribution: the integral of P over that of P^2, P(x) the chance of an error above x.
WORTH = 3.4
FREEDOM = 4  # of Student's t, by whose likelihood errors are fitted: a few large ones do not rule
LEAST_FLOOR = 1e-2  # of the mean squared error: what is left at a margin of 0 where the fit has nothing there
ROUNDS = 8  # of the fit; it moves by less than 1% after 4


class ErrorFit(NamedTuple):
    """How errors of a gap depend on its margin m: mean ``slope m``, variance ``floor + growth m``."""

    slope: float
    floor: float
    growth: float

    def spread(self, margins: np.ndarray) -> np.ndarray:
        """Standard deviation of the error at each margin."""
        return np.sqrt(self.floor + self.growth * margins)


class Margins:
    """Collects by how much the top class leads its nearest rivals in the float model, and what quantization adds.

    The rivals of an answer are the next RIVALS classes of the float model; its margins are the differences of the top
    class and each. Probabilities are taken as their logarithms, so that errors do not vanish where one class is sure.
    Classes are found as by ``Comparison``, and positions count as there; of one sample POSITIONS are drawn.
    """

    def __init__(self, *, rows_are_scores: bool = True, axis: int | None = None) -> None:
        self._rows_are_scores, self._given = rows_are_scores, axis
        self._draw = np.random.default_rng(SEED)
        self._kinds: set[tuple[int, bool] | None] = set()
        self._broken = False
        self._samples = self._count = 0
        # Of each batch: margins (rows, rivals), errors of them or None, (rows,) sample and weight.
        self._batches: list[tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]] = []

    def add(self, reference: np.ndarray, other: np.ndarray | None = None, samples: int = 1) -> None:
        """Take in one batch of the float model's values, and of the quantized model's where they are known."""
        axis = find_class_rows(reference, rows_are_scores=self._rows_are_scores, given=self._given)
        if axis is None:
            self._kinds.add(None)
        if axis is None or self._count >= ROWS:
            return
        rows = lay_rows(reference, axis)
        owners = np.arange(len(rows)) // (len(rows) // samples) if len(rows) % samples == 0 else np.arange(len(rows))
        finite = np.isfinite(rows).all(axis=1)
        taken, weights = self._choose(np.flatnonzero(finite), owners)
        rows, others = rows[taken], None if other is None else lay_rows(other, axis)[taken]
        self._broken |= others is not None and not bool(np.isfinite(others).all())
        likely = len(rows) > 0 and _are_likely(rows)
        if len(rows):
            self._count += len(rows)
            self._kinds.add((reference.shape[axis], likely))
            self._batches.append((*_find_gaps(rows, others, likely=likely), self._samples + owners[taken], weights))
        self._samples += int(owners[-1]) + 1 if len(owners) else 0

    def _choose(self, rows: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """At most POSITIONS of each sample's rows, and how many rows each of them stands for."""
        if not len(rows):
            return rows, np.zeros(0)
        mixed = rows[self._draw.permutation(len(rows))]
        mixed = mixed[np.argsort(owners[mixed], kind="stable")]
        _, first, counts = np.unique(owners[mixed], return_index=True, return_counts=True)
        place = np.arange(len(mixed)) - np.repeat(first, counts)
        kept = place < POSITIONS
        weights = np.repeat(counts / np.minimum(counts, POSITIONS), counts)
        return mixed[kept], weights[kept]

    def estimate(self, counted: Interval) -> tuple[float, Interval] | None:
        """The share (0 to 1) of answers that stay on other samples of this kind, and its 95% interval.

        counted: the interval of the share that was counted where errors are known; the estimate stays within, so that
        it cannot be far from the truth where many were counted. None without class scores, with values of the quantized
        model that are not finite, and where fewer than FEWEST samples have errors.
        """
        known = [batch for batch in self._batches if batch[1] is not None]
        if len(self._kinds) != 1 or None in self._kinds or self._broken or not known:
            return None
        errors = np.concatenate([batch[1] for batch in known if batch[1] is not None])
        given = _Rows(*(np.concatenate([batch[i] for batch in known]) for i in (0, 2, 3)))
        rows = _Rows(*(np.concatenate([batch[i] for batch in self._batches]) for i in (0, 2, 3)))
        if given.samples < FEWEST:
            return None
        chosen = np.random.default_rng(SEED).permutation(len(errors))[:ERRORS]
        given = _Rows(given.margins[chosen], given.owners[chosen], given.weights[chosen])
        share, interval = _estimate(rows, given, errors[chosen])
        clipped = min(max(share, counted[0]), counted[1])
        high = 1.0 if counted[1] == 1 else interval[1]  # where no answer differed, none may
        return clipped, (min(interval[0], clipped), max(high, clipped))


class _Rows(NamedTuple):
    """Margins (rows, rivals), the sample of each row, and how many positions each stands for."""

    margins: np.ndarray
    owners: np.ndarray
    weights: np.ndarray

    @property
    def samples(self) -> int:
        return len(np.unique(self.owners))

    def vary(self, kept: np.ndarray, share: float) -> float:
        """The variance of the weighted mean of ``kept`` (rows,), whose rows of one sample depend on each other."""
        _, place = np.unique(self.owners, return_inverse=True)
        apart = np.bincount(place, self.weights * (kept - share))
        count = len(apart)
        return float((apart**2).sum() / self.weights.sum() ** 2) * count / max(count - 1, 1)


def fit_errors(margins: np.ndarray, errors: np.ndarray) -> ErrorFit:
    """How errors depend on margins, (rows, rivals) each, by least squares weighted with the inverse variance.

    Errors have the variance of sums of as many independent parts as the margin is large, beside a part of their own.
    """
    slope, floor, growth = 0.0, float((errors**2).mean()), 0.0
    for _ in range(ROUNDS if floor > 0 else 0):
        variance = floor + growth * margins
        weights = (FREEDOM + 1) / (FREEDOM + (errors - slope * margins) ** 2 / variance)
        power = float((weights / variance * margins**2).sum())
        slope = max(float((weights / variance * margins * errors).sum()) / power, -1.0) if power > 0 else 0.0
        squares = weights * (errors - slope * margins) ** 2
        weights = 1 / variance**2
        weights /= weights.sum()
        x, y = float((weights * margins).sum()), float((weights * squares).sum())
        spread = float((weights * (margins - x) ** 2).sum())
        growth = max(float((weights * (margins - x) * squares).sum()) / spread, 0.0) if spread > 0 else 0.0
        floor = max(y - growth * x, LEAST_FLOOR * y)
        if floor == 0:  # errors are a multiple of the margins
            break
    return ErrorFit(slope, floor, growth)


def _estimate(rows: _Rows, given: _Rows, errors: np.ndarray) -> tuple[float, Interval]:
    """The share of answers that stay when every row meets every error, scaled to its margins, with both signs."""
    size = max(float(rows.margins.max()), float(np.abs(errors).max())) or 1.0
    margins, known, errors = rows.margins / size, given.margins / size, errors / size
    fit = fit_errors(known, errors)
    residuals = errors - fit.slope * known
    ratios = residuals / np.maximum(fit.spread(known), np.finfo(np.float64).tiny) if residuals.any() else residuals
    mean, spread = (1 + fit.slope) * margins, fit.spread(margins)
    by_row, by_error = np.zeros(len(margins)), np.zeros(len(ratios))
    for number, ratio in enumerate(ratios):
        stays = sum((mean + spread * error >= 0).all(axis=1) for error in (ratio, -ratio)) / 2
        by_row += given.weights[number] / given.weights.sum() * stays
        by_error[number] = rows.weights @ stays / rows.weights.sum()
    share = min(float(rows.weights @ by_row / rows.weights.sum()), 1.0)
    variance = rows.vary(by_row, share) + given.vary(by_error, share)
    most = WORTH * float(rows.weights.sum())
    independent = min(share * (1 - share) / variance, most) if variance > 0 else WORTH * rows.samples
    return share, wilson_interval(share, max(independent, 1.0))


def _are_likely(rows: np.ndarray) -> bool:
    """Whether rows are probabilities."""
    tolerance = SUM_TOLERANCE if rows.dtype.itemsize > 2 else HALF_TOLERANCE
    return bool(rows.min() >= 0 and np.abs(rows.sum(axis=1, dtype=np.float64) - 1).max() < tolerance)


def _find_gaps(rows: np.ndarray, others: np.ndarray | None, *, likely: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Margins of the top class over its rivals, and what the other model adds to them, (rows, rivals)."""
    size = max(1, SORTED_AT_ONCE // rows.shape[1])
    order = np.concatenate([_find_best(rows[at : at + size]) for at in range(0, len(rows), size)])
    best, other = (
        None if x is None else np.take_along_axis(x, order, axis=1).astype(np.float64) for x in (rows, others)
    )
    assert best is not None
    if likely:
        least = LEAST_LIKELY * best[:, :1]
        best, other = np.log(np.maximum(best, least)), None if other is None else np.log(np.maximum(other, least))
    gaps = None if other is None else other - best
    return best[:, :1] - best[:, 1:], None if gaps is None else gaps[:, :1] - gaps[:, 1:]


def _find_best(rows: np.ndarray) -> np.ndarray:
    """Indices of the best RIVALS + 1 classes, the best first, and the first of equal ones."""
    count = min(RIVALS + 1, rows.shape[1])
    found = np.sort(np.argpartition(rows, -count, axis=1)[:, -count:], axis=1)
    order = np.argsort(-np.take_along_axis(rows, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
