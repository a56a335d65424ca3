"""How far outputs are from their reference, as a bit plan's loss counts it."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from .metrics import scores_classes

# Of the softmax (Hinton et al. 2015): at 1 a handful of samples near a tie of classes make all of the divergence.
TEMPERATURE = 4.0
# Sums of probabilities may be off one by so much; smaller ones count as this.
PROBABLE, LEAST = 1e-3, 1e-12


class Divergence:
    """Of class scores the mean over samples of KL(p || q), p the reference's softmax at TEMPERATURE.

    Of other outputs the squared error relative to the reference's squares.
    """

    def __init__(self) -> None:
        self._totals: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Take in one batch of both, of one shape."""
        a, b = reference.astype(np.float64), other.astype(np.float64)
        if scores_classes(reference.shape):
            a, b = (_log_probabilities(x, like=a).reshape(len(a), -1) for x in (a, b))
            self._totals.append((np.exp(a) * (a - b)).sum(1))
            self._weights.append(np.ones(len(a)))
        else:
            a, b = (np.atleast_1d(x).reshape(len(np.atleast_1d(x)), -1) for x in (a, b))
            self._totals.append(np.square(a - b).sum(1))
            self._weights.append(np.square(a).sum(1))

    @property
    def samples(self) -> int:
        """Samples taken in."""
        return sum(map(len, self._totals))

    @property
    def value(self) -> float:
        """Zero where both are equal; infinite where a value is not finite, or nothing but zeros was wanted."""
        total, weight = sum(float(t.sum()) for t in self._totals), sum(float(w.sum()) for w in self._weights)
        if total == 0:
            return 0.0
        value = total / weight if weight else np.inf
        return value if np.isfinite(value) else np.inf

    @property
    def error(self) -> float:
        """Standard error of the value, of a ratio of sums over samples; infinite of fewer than two."""
        totals, weights = (np.concatenate([[], *each]) for each in (self._totals, self._weights))
        value, count = self.value, len(totals)
        if count < 2 or not np.isfinite(value):
            return np.inf
        if value == 0:
            return 0.0
        residuals = totals - value * weights
        return float(np.sqrt(np.square(residuals).sum() * count / (count - 1)) / weights.sum())


def _log_probabilities(scores: np.ndarray, *, like: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax of scores, which are taken for probabilities where the reference ``like`` are."""
    if (like >= 0).all() and (np.abs(like.sum(1) - 1) < PROBABLE).all():
        scores = np.log(np.maximum(scores, LEAST))
    return log_softmax(scores / TEMPERATURE, axis=1)
