"""The squared errors of many grids at once, from sums over the bins of a histogram.

All bins that a grid rounds to one level are neighbours, so that their error follows from three sums, and these from
running sums over all bins. A grid then costs as much as it has levels, and not as the histogram has bins. Differences
of running sums have rounding errors, of which ``slack`` is a bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..spec import QuantSpec
from .histogram import BINS, Histogram

# Rounding of running sums over BINS bins reaches some BINS times 2^-53 of the whole sum; this is ten times that.
ROUNDING = 1e-11
# Boundaries between levels that are looked up at once: few enough that intermediate arrays stay in the cache.
CHUNK = 2**15


class BinSums:
    """Running sums of counts, and of counts times a function of the values and its square, over all bins."""

    def __init__(self, histogram: Histogram, function: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self.width, self.first, self.function = histogram.width, histogram.first, function
        counts = histogram.counts.astype(np.float64)
        values = histogram.centres if function is None else function(histogram.centres)
        moments = np.stack([counts, counts * values])
        self._sums = np.concatenate([np.zeros((2, 1)), np.cumsum(moments, axis=1)], axis=1)
        self.total = float(np.dot(counts, values**2))
        largest = float(np.abs(values).max(where=counts > 0, initial=0.0))
        self.slack = ROUNDING * (self.total + largest * float(np.abs(moments[1]).sum()))

    def measure(self, scales: np.ndarray, zero_points: np.ndarray, spec: QuantSpec) -> np.ndarray:
        """The squared error of each grid, (grids,)."""
        size = max(1, CHUNK // (spec.qmax - spec.qmin + 1))
        parts = range(0, len(scales), size)
        return np.concatenate([self._measure(scales[i : i + size], zero_points[i : i + size], spec) for i in parts])

    def _measure(self, scales: np.ndarray, zero_points: np.ndarray, spec: QuantSpec) -> np.ndarray:
        levels = np.arange(spec.qmin, spec.qmax + 1) - zero_points[:, None]
        values = levels * scales[:, None]
        bounds = (levels[:, :-1] + 0.5) * scales[:, None]
        # The number of bins whose centre is below.
        places = bounds / self.width - (self.first + 0.5)
        below = np.ceil(places)
        if self.function is not None:  # a centre between two levels goes to the even one; else both are as far
            below = np.where(levels[:, :-1] % 2 == 0, np.floor(places) + 1, below)
        ends = np.clip(below, 0, BINS).astype(np.intp)
        edges = np.pad(ends, ((0, 0), (1, 1)), constant_values=((0, 0), (0, BINS)))
        counts, sums = (np.diff(each[edges], axis=1) for each in self._sums)
        given = values if self.function is None else self.function(values)
        found: np.ndarray = self.total + np.einsum("gl,gl->g", given, given * counts - 2 * sums)
        return found
