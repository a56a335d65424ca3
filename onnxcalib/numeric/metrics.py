"""How far a tensor is from its reference, accumulated batch by batch."""

from __future__ import annotations

import numpy as np


class Comparison:
    """Running sums of a reference tensor, another one and their difference; float64 throughout."""

    def __init__(self) -> None:
        self._reference = self._other = self._error = self._product = 0.0
        self._rows = self._equal = 0
        self.max_abs_error = 0.0
        self._scores = True

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Take in one batch of both, of one shape."""
        a, b = reference.astype(np.float64), other.astype(np.float64)
        difference = a - b
        self._reference += float(np.vdot(a, a))
        self._other += float(np.vdot(b, b))
        self._product += float(np.vdot(a, b))
        self._error += float(np.vdot(difference, difference))
        self.max_abs_error = max(self.max_abs_error, float(np.abs(difference).max(initial=0.0)))
        self._scores &= a.ndim >= 2 and a.shape[1] > 1 and a.size == a.shape[0] * a.shape[1]
        if self._scores:
            rows = (a.shape[0], a.shape[1])
            self._rows += rows[0]
            self._equal += int((a.reshape(rows).argmax(1) == b.reshape(rows).argmax(1)).sum())

    @property
    def sqnr_db(self) -> float:
        """``10 log10(sum a^2 / sum (a - b)^2)``; infinite where nothing differs."""
        if self._error == 0:
            return float("inf")
        return 10 * float(np.log10(max(self._reference, np.finfo(np.float64).tiny) / self._error))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both, all batches taken as one vector."""
        norm = np.sqrt(self._reference * self._other)
        return self._product / norm if norm else 1.0

    @property
    def agreement(self) -> float | None:
        """Share of rows with equal arg max, where the tensor is (samples, classes); None elsewhere."""
        return self._equal / self._rows if self._scores and self._rows else None
