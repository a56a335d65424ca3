"""The loss of a bit plan: how far the model's outputs are from the float model's."""

from __future__ import annotations

import numpy as np
import torch

from .distill import position_losses, sample_losses


class Divergence:
    """The loss of one output, accumulated over batches in float64.

    For class scores the mean over samples of KL(p || q) in nats, with p and q the softmax of the reference and of the
    other model at ``distill.TEMPERATURE``. For other outputs the squared error over the reference's power. With
    ``axis``, that of the classes of which every position of a sample has a distribution, as those of next tokens: the
    mean of KL(p || q) over all positions, at temperature 1.
    """

    def __init__(self, axis: int | None = None) -> None:
        self._axis = axis
        self._totals: list[np.ndarray] = []
        self._weights: list[np.ndarray] = []

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Take in one batch of both models' outputs, of the same shape."""
        target, output = (torch.from_numpy(x.astype(np.float64)) for x in (reference, other))
        found = (
            sample_losses([output], [target])[0] if self._axis is None else position_losses(output, target, self._axis)
        )
        loss, weight = found.numpy().T
        self._totals.append(loss)
        self._weights.append(weight)

    @property
    def samples(self) -> int:
        """Samples taken in."""
        return sum(map(len, self._totals))

    @property
    def value(self) -> float:
        """The loss; 0 where both are equal, infinite where a value is not finite or the reference is all zeros."""
        total, weight = sum(float(t.sum()) for t in self._totals), sum(float(w.sum()) for w in self._weights)
        if total == 0:
            return 0.0
        value = total / weight if weight else np.inf
        return value if np.isfinite(value) else np.inf

    @property
    def error(self) -> float:
        """Standard error of ``value``, a ratio of sums over samples (Cochran 1977, chapter 6); inf below 2 samples."""
        totals, weights = (np.concatenate([[], *each]) for each in (self._totals, self._weights))
        value, count = self.value, len(totals)
        if count < 2 or not np.isfinite(value):
            return np.inf
        if value == 0:
            return 0.0
        residuals = totals - value * weights
        return float(np.sqrt(np.square(residuals).sum() * count / (count - 1)) / weights.sum())
