"""Histograms of steps of sequences, in which the squared error of a value counts relative to its step's own signal.

A sequence has loud and quiet steps. Of the plain squared error over all of them loud ones are nearly all, and the grid
that it chooses may have no level left for what a quiet one holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .histogram import Histogram

# A step counts as having this share of the mean power at least. With a hundredth, speech has 1 to 3 dB more where quiet
# steps are many, and other recordings, louder ones, up to 6 less.
LEAST_POWER = 0.1
# What a value of mean power counts as, in a histogram of integers; one of 10,000 times as much counts as 6.
TIMES = 2**16


@dataclass(eq=False)
class StepHistogram:
    """Histograms of the steps of each power of two of their mean square, and the peaks of all steps in their order."""

    levels: dict[int, Histogram] = field(default_factory=dict)
    powers: float = 0.0
    steps: int = 0
    peaks: np.ndarray = field(default_factory=lambda: np.zeros((2, 0)))

    def add_rows(self, rows: np.ndarray, *, step: int = 1) -> None:
        """Count the values of more steps, (steps, values), as ``Histogram.add_rows`` does; raises as that."""
        rows = np.asarray(rows, np.float32)
        powers = np.einsum("sv,sv->s", rows, rows, dtype=np.float64) / max(rows.shape[1], 1)
        if not np.isfinite(powers).all():
            raise ValueError("values that are not finite")
        self.powers, self.steps = self.powers + float(powers.sum()), self.steps + len(rows)
        levels = np.frexp(powers)[1]
        for level in np.unique(levels).tolist():
            self.levels.setdefault(level, Histogram()).add_rows(rows[levels == level], step=step)
        ends = [rows.min(axis=1, initial=0.0), rows.max(axis=1, initial=0.0)]
        self.peaks = np.concatenate([self.peaks, ends], axis=1)

    def join(self) -> Histogram:
        """All values in one histogram, each counted about m / max(p, LEAST_POWER m) times, in units of TIMES.

        p: the mean square of its step, to a power of two. m: the mean of p over all steps.
        """
        joined, mean = Histogram(), self.powers / max(self.steps, 1)
        for level, histogram in sorted(self.levels.items()):
            power = max(0.75 * 2.0**level, LEAST_POWER * mean, float(np.finfo(np.float32).tiny))
            joined.merge(histogram, times=max(1, round(TIMES * mean / power)))
        joined.peaks = self.peaks
        return joined
