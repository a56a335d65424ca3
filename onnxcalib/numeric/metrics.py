"""How far a tensor is from its reference, accumulated batch by batch."""

from __future__ import annotations

import numpy as np

# Values compared at once: so few that their float64 copies stay in the processor's cache, and that OpenBLAS, which
# splits dot products of more than 10,000, starts no threads: they fight with onnxruntime's and take far longer.
CHUNK = 2**13


class Comparison:
    """Running sums of a reference tensor, another one and their difference; float64 throughout."""

    def __init__(self) -> None:
        self._reference = self._other = self._error = self._product = 0.0
        self._rows = self._equal = 0
        self._scores = True
        self.max_abs_error = 0.0

    def add(self, reference: np.ndarray, other: np.ndarray) -> None:
        """Take in one batch of both, of one shape."""
        flat, flat_other = reference.reshape(-1), other.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            a = flat[start : start + CHUNK].astype(np.float64)
            b = flat_other[start : start + CHUNK].astype(np.float64)
            self._reference += float(np.dot(a, a))
            self._other += float(np.dot(b, b))
            self._product += float(np.dot(a, b))
            a -= b
            self._error += float(np.dot(a, a))
            self.max_abs_error = max(self.max_abs_error, float(a.max()), -float(a.min()))
        shape = reference.shape
        self._scores &= len(shape) >= 2 and shape[1] > 1 and reference.size == shape[0] * shape[1]
        if self._scores:
            self._rows += shape[0]
            best, best_other = (x.reshape(shape[:2]).argmax(1) for x in (reference, other))
            self._equal += int((best == best_other).sum())

    @property
    def sqnr_db(self) -> float:
        """``10 log10(sum a^2 / sum (a - b)^2)``; infinite where nothing differs."""
        if self._error == 0:
            return float("inf")
        return 10 * float(np.log10(max(self._reference, np.finfo(np.float64).tiny) / self._error))

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both, all batches taken as one vector; that of zero and zero is 1."""
        norm = np.sqrt(self._reference * self._other)
        return float(self._product / norm) if norm else float(self._error == 0)

    @property
    def agreement(self) -> float | None:
        """Share of rows with equal arg max, where the tensor is (samples, classes); None elsewhere."""
        return self._equal / self._rows if self._scores and self._rows else None
