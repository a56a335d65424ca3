"""A histogram whose bins widen with its data, so that memory stays constant however many values stream through."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 8192
# Values counted at once: few enough that intermediate arrays stay in the processor's cache.
CHUNK = 2**16


@dataclass(eq=False)
class Histogram:
    """Counts in BINS equal bins, bin i from ``(first + i) * width`` on, and the exact minimum and maximum.

    peaks: the lowest and the highest value of each sample, or zero, (2, samples), where they were given.
    The width, in units of the values, is a power of two, and zero is always a bin edge. A value outside makes pairs of
    bins merge, and histograms of one tensor can be merged without loss.
    """

    width: float = 0.0
    first: int = 0
    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    minimum: float = np.inf
    maximum: float = -np.inf
    peaks: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))

    def add_peaks(self, rows: np.ndarray) -> None:
        """Keep the lowest and the highest value of more samples, (samples, values)."""
        ends = np.stack([rows.min(axis=1, initial=0.0), rows.max(axis=1, initial=0.0)])
        self.peaks = np.concatenate([self.peaks, ends], axis=1)

    def add(self, values: np.ndarray) -> None:
        """Count the values of an array of any shape; raises ValueError where one is not finite."""
        values = np.asarray(values, np.float32).reshape(-1)
        if values.size:
            self._count(values, float(values.min()), float(values.max()))

    def add_rows(self, rows: np.ndarray, *, step: int = 1) -> None:
        """Count the values of more samples, (samples, values), and keep the lowest and the highest of each.

        step: one of so many values is counted, as that many. Raises as ``add``.
        """
        rows = np.asarray(rows, np.float32)
        if not rows.size:
            return self.add_peaks(rows)
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        first = self.peaks.shape[1] // len(rows) % step  # in other batches other ones
        counted = rows.reshape(-1)[first::step]
        self._count(counted, float(lows.min()), float(highs.max()), step)
        self.peaks = np.concatenate([self.peaks, [np.minimum(lows, 0.0), np.maximum(highs, 0.0)]], axis=1)

    def _count(self, values: np.ndarray, low: float, high: float, step: int = 1) -> None:
        """Count values, of which these are the ends, each as ``step``."""
        if not np.isfinite(low) or not np.isfinite(high):
            raise ValueError("values that are not finite")
        self._cover(low, high)
        for start in range(0, values.size, CHUNK):
            # Exact, as the width is a power of two.
            bins = values[start : start + CHUNK] * np.float32(1 / self.width)
            np.floor(bins, out=bins)
            bins -= self.first
            self.counts += np.bincount(bins.astype(np.intp), minlength=BINS) * step

    def merge(self, other: Histogram, *, times: int = 1) -> None:
        """Add the counts of another histogram, so many times, to these: that of another tensor in the same samples."""
        if other.width == 0:
            return
        mine = self.peaks if self.width else np.zeros_like(other.peaks)
        if mine.shape == other.peaks.shape:
            self.peaks = np.stack([np.minimum(mine[0], other.peaks[0]), np.maximum(mine[1], other.peaks[1])])
        self._cover(other.minimum, other.maximum, at_least=other.width)
        ratio = int(min(self.width / other.width, 2.0**62))
        used = np.flatnonzero(other.counts)
        np.add.at(self.counts, (used + other.first) // ratio - self.first, other.counts[used] * times)

    @property
    def centres(self) -> np.ndarray:
        """Middle of every bin, float64 (BINS,)."""
        return (np.arange(BINS) + self.first + 0.5) * self.width

    def _cover(self, low: float, high: float, at_least: float = 0.0) -> None:
        """Make the bins, each at least ``at_least`` wide, cover [low, high], zero and all that was counted."""
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        if self.width == 0:
            span = max(high - low, float(np.finfo(np.float32).tiny) * BINS)
            self.width = float(max(2.0 ** np.ceil(np.log2(span / (BINS - 2))), at_least))
            self.first = int(np.floor(low / self.width))
        while self.width < at_least:
            self._merge_pairs()
        while np.floor(high / self.width) - np.floor(low / self.width) >= BINS:
            self._merge_pairs()
        first = int(np.floor(low / self.width))
        if first < self.first or high >= (self.first + BINS) * self.width:
            self._move(first)

    def _move(self, first: int) -> None:
        """Make ``first`` the first bin; all that was counted must lie within the new bins."""
        moved = np.zeros_like(self.counts)
        used = np.flatnonzero(self.counts)
        moved[used + self.first - first] = self.counts[used]
        self.counts, self.first = moved, first

    def _merge_pairs(self) -> None:
        """Double the width: merge each two neighbouring bins."""
        bins = (np.arange(BINS) + self.first) // 2
        merged = np.zeros_like(self.counts)
        np.add.at(merged, bins - bins[0], self.counts)
        self.counts, self.first, self.width = merged, int(bins[0]), self.width * 2
