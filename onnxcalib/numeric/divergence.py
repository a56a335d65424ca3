"""How far outputs are from their reference, as a bit plan's loss counts it."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from .metrics import scores_classes

# Sums of probabilities may be off one by so much; smaller ones count as this.
PROBABLE, LEAST = 1e-3, 1e-12


class Divergence:
    """Mean over samples of KL(p || q) for class scores, p the softmax of the reference; else relative squared error."""

    def __init__(self) -> None:
        self._total, self._weight = 0.0, 0.0

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Take in one batch of both, of one shape."""
        a, b = reference.astype(np.float64), other.astype(np.float64)
        if scores_classes(reference.shape):
            a, b = (_log_probabilities(x, like=a) for x in (a, b))
            self._total += float((np.exp(a) * (a - b)).sum())
            self._weight += len(a)
        else:
            self._total += float(np.square(a - b).sum())
            self._weight += float(np.square(a).sum())

    @property
    def value(self) -> float:
        """Zero where both are equal; infinite where a value is not finite, or nothing but zeros was wanted."""
        if self._total == 0:
            return 0.0
        value = self._total / self._weight if self._weight else np.inf
        return value if np.isfinite(value) else np.inf


def _log_probabilities(scores: np.ndarray, *, like: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax, or of the scores themselves where the reference ``like`` are probabilities already."""
    if (like >= 0).all() and (np.abs(like.sum(1) - 1) < PROBABLE).all():
        return np.log(np.maximum(scores, LEAST))
    return log_softmax(scores, axis=1)
