"""How far outputs are from their reference, as a bit plan's loss counts it."""

from __future__ import annotations

import numpy as np
import torch

from .distill import sample_losses


class Divergence:
    """Of class scores the mean over samples of KL(p || q), p the reference's softmax at ``distill.TEMPERATURE``.

    Of other outputs the squared error relative to the reference's squares.
    """

    def __init__(self) -> None:
        self._totals: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Take in one batch of both, of one shape."""
        target, output = (torch.from_numpy(x.astype(np.float64)) for x in (reference, other))
        loss, weight = sample_losses([output], [target])[0].numpy().T
        self._totals.append(loss)
        self._weights.append(weight)

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
