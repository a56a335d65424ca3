"""A histogram that grows with its data: memory stays constant however many samples stream through."""

from __future__ import annotations

import numpy as np

BINS = 8192
# Values counted at once: few enough that their temporaries stay in the processor's cache.
CHUNK = 2**16


class Histogram:
    """Counts on ``BINS`` equal bins, bin i from ``(first + i) * width`` on, plus the exact minimum and maximum.

    The width is a power of two and zero is always a bin edge, so that a value outside widens the bins by merging pairs
    of them, and two histograms of one tensor merge without loss.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.first = 0
        self.counts = np.zeros(BINS, np.int64)
        self.minimum = np.inf
        self.maximum = -np.inf

    def add(self, values: np.ndarray) -> None:
        """Count an array of any shape; values that are not finite raise ValueError."""
        values = np.asarray(values, np.float32).reshape(-1)
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            raise ValueError("values that are not finite")
        self._cover(low, high)
        for start in range(0, values.size, CHUNK):
            # Exact, as the width is a power of two.
            bins = values[start : start + CHUNK] * np.float32(1 / self.width)
            np.floor(bins, out=bins)
            bins -= self.first
            self.counts += np.bincount(bins.astype(np.intp), minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram to these."""
        if other.width == 0:
            return
        self._cover(other.minimum, other.maximum, at_least=other.width)
        ratio = int(min(self.width / other.width, 2.0**62))
        used = np.flatnonzero(other.counts)
        np.add.at(self.counts, (used + other.first) // ratio - self.first, other.counts[used])

    @property
    def centres(self) -> np.ndarray:
        """Middle of every bin, float64 (BINS,)."""
        return (np.arange(BINS) + self.first + 0.5) * self.width

    def _cover(self, low: float, high: float, at_least: float = 0.0) -> None:
        """Make the bins reach over [low, high], zero and what was counted, ``at_least`` wide each."""
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if self.width == 0:
            span = max(high - low, float(np.finfo(np.float32).tiny) * BINS)
            self.width = float(max(2.0 ** np.ceil(np.log2(span / (BINS - 2))), at_least))
            self.first = int(np.floor(low / self.width))
        while self.width < at_least:
            self._halve()
        while np.floor(high / self.width) - np.floor(low / self.width) >= BINS:
            self._halve()
        first = int(np.floor(low / self.width))
        if first < self.first or high >= (self.first + BINS) * self.width:
            self._move(first)

    def _move(self, first: int) -> None:
        """Make ``first`` the first bin; what was counted lies within the new bins."""
        moved = np.zeros_like(self.counts)
        used = np.flatnonzero(self.counts)
        moved[used + self.first - first] = self.counts[used]
        self.counts, self.first = moved, first

    def _halve(self) -> None:
        """Merge pairs of bins."""
        places = (np.arange(BINS) + self.first) // 2
        merged = np.zeros_like(self.counts)
        np.add.at(merged, places - places[0], self.counts)
        self.counts, self.first, self.width = merged, int(places[0]), self.width * 2
