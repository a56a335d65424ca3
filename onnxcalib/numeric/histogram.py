"""A histogram that grows with its data: memory stays constant however many samples stream through."""

from __future__ import annotations

import numpy as np

BINS = 8192


class Histogram:
    """Counts on ``BINS`` equal bins over [low, high], plus the exact minimum and maximum.

    The bin width is a power of two times a first guess and zero is always a bin edge, so that a value outside widens
    the bins by merging pairs of them, and two histograms of one tensor merge without loss.
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
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._cover(low, high)
        bins = np.floor(values * np.float32(1 / self.width)).astype(np.int64) - self.first
        self.counts += np.bincount(np.clip(bins, 0, BINS - 1), minlength=BINS)

    def merge(self, other: Histogram) -> None:
        """Add the counts of another histogram to these."""
        if other.width == 0:
            return
        self.minimum, self.maximum = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
        self._cover(other.minimum, other.maximum, at_least=other.width)
        ratio = round(self.width / other.width)
        places = (np.arange(BINS) + other.first) // ratio - self.first
        np.add.at(self.counts, np.clip(places, 0, BINS - 1), other.counts)

    def _cover(self, low: float, high: float, at_least: float = 0.0) -> None:
        low, high = min(low, 0.0), max(high, 0.0)
        if self.width == 0:
            span = max(high - low, float(np.finfo(np.float32).tiny) * BINS)
            self.width = max(2.0 ** np.ceil(np.log2(span / (BINS - 2))), at_least)
            self.first = int(np.floor(low / self.width))
        while self.width < at_least or not self._holds(low, high):
            shifted = self._shift(low, high)
            if not shifted:
                self._halve()

    def _holds(self, low: float, high: float) -> bool:
        return low >= self.first * self.width and high < (self.first + BINS) * self.width

    def _shift(self, low: float, high: float) -> bool:
        """Move the window over empty bins where that is enough to hold the new range."""
        used = np.flatnonzero(self.counts)
        start = int(np.floor(low / self.width))
        end = int(np.floor(high / self.width))
        if used.size:
            start, end = min(start, self.first + int(used[0])), max(end, self.first + int(used[-1]))
        if end - start >= BINS:
            return False
        moved = np.zeros_like(self.counts)
        if used.size:
            moved[used + self.first - start] = self.counts[used]
        self.counts, self.first = moved, start
        return True

    def _halve(self) -> None:
        places = (np.arange(BINS) + self.first) // 2
        self.first = int(places[0])
        merged = np.zeros_like(self.counts)
        np.add.at(merged, places - self.first, self.counts)
        self.counts = merged
        self.width *= 2

    @property
    def centres(self) -> np.ndarray:
        """Middle of every bin, float64 (BINS,)."""
        return (np.arange(BINS) + self.first + 0.5) * self.width
