"""From the histogram of an activation to its scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from ..spec import QParams, QuantSpec
from .bin_sums import BinSums
from .histogram import BINS, Histogram
from .rounding import fake_quantize, next_power

# Ends of a range that the search tries, as shares of the full range's end: 5% apart, down to a thousandth.
SHARES = np.geomspace(1.0, 0.001, 142)
# Ends beyond what was seen, as multiples of it, for samples still to come. With up to 1.3 small tables gain 0.4
# dB more, and layers behind a pool lose 0.6.
MARGINS = np.geomspace(1.025, 1.15, 6)
# How far beyond what was seen a grid of 16 bits ends, as a share of it. Half as much again costs 3.5 dB of some 90.
WIDE_MARGIN = 0.5
# Without so many samples nothing is known of others.
LEAST_SAMPLES = 8
# Ranges that are looked at together, before it is asked whether narrower ones can be better.
AT_ONCE = 32
# Rounds in which each end is searched with the other one fixed; a third round changed no decimal.
ROUNDS = 2
# The least scale. A tensor whose range has less than this for every level is constant.
LEAST_SCALE = float(np.finfo(np.float32).tiny)
Function = Callable[[np.ndarray], np.ndarray]
# What flattens a part of its range, by name.
FUNCTIONS: dict[str | None, Function] = {
    "sigmoid": special.expit,
    "tanh": np.tanh,
    "swish": lambda x: x * special.expit(x),
    "hard-swish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "gelu": lambda x: x * special.ndtr(x),
}
RANGE_KINDS = ("min-max", "percentile", "squared-error", "entropy")


def choose_grid(
    histogram: Histogram,
    spec: QuantSpec,
    *,
    kind: str = "squared-error",
    percentile: float = 99.99,
    bound: float | None = None,
    function: str | None = None,
) -> QParams:
    """The grid of one activation tensor; zero is always on it.

    kind: one of RANGE_KINDS, how the range is chosen. percentile: percent of the values that the range keeps, for that
    kind. bound: c of a tensor that a Clip(0, c) makes, or infinity of a Relu's. The zero point of a grid that is not
    symmetric is qmin, and its range ends inside [0, c], unless scales are powers of two: onnxruntime fuses the
    activation only then. function: one of FUNCTIONS that alone reads the tensor; the squared error is then that of what
    it gives. Swish makes next to nothing of all values below -8, so that they need no levels.

    A grid of more levels than the histogram has bins keeps all values, and WIDE_MARGIN more: the bins do not tell how
    values are rounded on it, and clipped ones would cost more than a wide range does.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    levels = spec.qmax - spec.qmin
    if not np.isfinite(low) or high - low < LEAST_SCALE * levels:
        low, high = 0.0, 1.0
    elif kind == "percentile":
        low, high = _percentile(histogram, percentile)
    elif kind != "min-max" and levels >= BINS:
        low, high = (1 + WIDE_MARGIN) * low, (1 + WIDE_MARGIN) * high
    elif kind in ("squared-error", "entropy"):
        low, high = _Search(histogram, spec, bound, kind, FUNCTIONS.get(function)).run(low, high)
    return make_grid(low, high, spec, bound=bound)


def fix_grid(scale: float, zero_point: int, spec: QuantSpec) -> QParams:
    """The grid of this scale and this zero point."""
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), spec)


def make_grid(low: float, high: float, spec: QuantSpec, *, bound: float | None = None) -> QParams:
    """The grid over [low, high], extended to hold zero; ``bound`` as in ``choose_grid``.

    A scale that must be a power of two is the least one whose grid holds the range.
    """
    scale, zero_point = _make_grids(np.array([low]), np.array([high]), spec, bound)
    return QParams(scale.reshape(()), zero_point.reshape(()), spec)


def _make_grids(
    lows: np.ndarray, highs: np.ndarray, spec: QuantSpec, bound: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """The scales, float32, and the zero points, int32, of grids over these ranges."""
    lows, highs = np.minimum(lows, 0.0), np.maximum(highs, 0.0)
    limit = None if spec.power_of_two else bound
    highs = highs if limit is None else np.minimum(highs, limit)
    zero_point = _find_zero_point(spec, bound)
    if zero_point is None:
        steps = (highs - lows) / (spec.qmax - spec.qmin)
    else:
        below, above = zero_point - spec.qmin, spec.qmax - zero_point
        steps = np.maximum(highs / above, -lows / below if below else 0.0)
    scales = np.maximum(steps, LEAST_SCALE).astype(np.float32)
    if limit is not None and zero_point is not None:
        scales = _limit_scales(scales, spec.qmax - zero_point, limit)
    scales = _raise_scales(scales, spec)
    if zero_point is None:
        return scales, _place_zeros(lows, highs, scales.astype(np.float64), spec)
    return scales, np.full(scales.shape, zero_point, np.int32)


def _find_zero_point(spec: QuantSpec, bound: float | None) -> int | None:
    """The zero point of every grid of the spec; None where the range decides."""
    if spec.symmetric:
        return spec.middle
    return None if bound is None else spec.qmin


def _place_zeros(lows: np.ndarray, highs: np.ndarray, scales: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """The zero points with which grids hold [low, high]; levels that are left over lie on both sides of it."""
    lowest = spec.qmin - lows / scales
    if spec.power_of_two:
        left = (spec.qmax - spec.qmin - (highs - lows) / scales) / 2
        lowest = lowest + np.where((lows < 0) & (highs > 0), left, 0.0)
    zero_points: np.ndarray = np.clip(np.rint(lowest), spec.qmin, spec.qmax).astype(np.int32)
    return zero_points


def raise_scale(scale: np.float32, spec: QuantSpec) -> np.float32:
    """The least scale, from this one on, that the spec allows: of its least range, and a power of two where it asks."""
    return np.float32(_raise_scales(np.array([scale], np.float32), spec)[0])


def _raise_scales(scales: np.ndarray, spec: QuantSpec) -> np.ndarray:
    levels = spec.qmax - spec.qmin
    least = np.float32(spec.least_range / levels)
    while (low := scales.astype(np.float64) * levels < spec.least_range).any():
        scales = np.where(low, np.nextafter(np.maximum(scales, least), np.float32(np.inf)), scales)
    return next_power(scales).astype(np.float32) if spec.power_of_two else scales


def limit_scale(scale: np.float32, levels: int, bound: float) -> np.float32:
    """The scale, lowered where ``levels`` of it reach beyond ``bound``, but to LEAST_SCALE at most."""
    return np.float32(_limit_scales(np.array([scale], np.float32), levels, bound)[0])


def _limit_scales(scales: np.ndarray, levels: int, bound: float) -> np.ndarray:
    most = np.float32(bound / levels)
    while (high := (scales.astype(np.float64) * levels > bound) & (scales > LEAST_SCALE)).any():
        scales = np.where(high, np.nextafter(np.minimum(scales, most), np.float32(0)), scales)
    return scales


def measure_squares(histogram: Histogram, grid: QParams) -> float:
    """The squared error of a tensor on a grid, summed over its values."""
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    return _measure_squares(None)(centres, counts, float(grid.scale), int(grid.zero_point), grid.spec)


def _percentile(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range without the outermost (100 - percentile) percent of the values, half of them on each side of zero."""
    total = histogram.counts.sum()
    tail = (1 - percentile / 100) * total
    tail = tail / 2 if histogram.minimum < 0 < histogram.maximum else tail
    below, above = np.cumsum(histogram.counts), np.cumsum(histogram.counts[::-1])[::-1]
    kept = np.flatnonzero((below > tail) & (above > tail))
    if not kept.size:
        return histogram.minimum, histogram.maximum
    low = max((histogram.first + kept[0]) * histogram.width, histogram.minimum)
    high = min((histogram.first + kept[-1] + 1) * histogram.width, histogram.maximum)
    return float(low), float(high)


# (bin centres, counts, scale, zero point, spec) -> loss of the grid.
Measure = Callable[[np.ndarray, np.ndarray, float, int, QuantSpec], float]


@dataclass(frozen=True)
class _Tail:
    """What samples that were not seen add to the squared error beyond an end of a range, by an exponential tail.

    It starts behind the peak that the square root of all peaks exceed, and falls by their mean excess. The square of
    what a range cuts off falls as the number of peaks beyond its end does. Where a sample has many values, their
    rounding outweighs it. It decides where samples have few, as rows of tables have. total: the squared error of what
    lies behind the start; 0 without a tail.
    """

    centres: np.ndarray
    counts: np.ndarray
    start: float
    excess: float
    total: float

    @classmethod
    def fit(cls, peaks: np.ndarray, centres: np.ndarray, counts: np.ndarray) -> _Tail | None:
        """The tail behind the peaks of samples, (samples,); None where there is none."""
        above = math.ceil(math.sqrt(len(peaks)))
        ordered = np.sort(peaks)[::-1]
        start, excess = float(ordered[above]), float(np.mean(ordered[:above] - ordered[above]))
        if start <= 0 or excess <= 0:
            return None
        return cls(centres, counts, start, excess, _clip(start, centres, counts))

    def add_each(self, ends: np.ndarray) -> np.ndarray:
        """The squared error that such samples add where the range ends at each of these, (ends,)."""
        distinct, place = np.unique(ends, return_inverse=True)
        expected = self.total * np.exp(np.minimum(self.start - distinct, 0.0) / self.excess)
        expected[distinct < self.start] = 0.0
        for i in np.flatnonzero(expected):
            expected[i] = max(0.0, expected[i] - _clip(distinct[i], self.centres, self.counts))
        added: np.ndarray = expected[place]
        return added


def _clip(end: float, centres: np.ndarray, counts: np.ndarray) -> float:
    """The squared error of values beyond the end of a range."""
    return float(np.dot(counts, np.square(np.maximum(centres - end, 0))))


class _Search:
    """The grid of least loss over a histogram: all ranges are looked at by ``BinSums``, and the best ones measured."""

    def __init__(
        self, histogram: Histogram, spec: QuantSpec, bound: float | None, kind: str, function: Function | None
    ) -> None:
        self.spec, self.bound = spec, bound
        used = histogram.counts > 0
        self.centres, self.counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
        self.measure = _measure_squares(function) if kind == "squared-error" else _divergence
        self.quick = BinSums(histogram, function) if kind == "squared-error" else None
        self.known: dict[tuple[float, int], float] = {}  # many shares have the same power of two
        peaks = histogram.peaks
        self.tails: tuple[_Tail | None, _Tail | None] = None, None
        self.shares = SHARES
        if kind == "squared-error" and function is None and peaks.shape[1] >= LEAST_SAMPLES:
            below = _Tail.fit(-peaks[0], -self.centres, self.counts)
            self.tails = below, _Tail.fit(peaks[1], self.centres, self.counts)
            self.shares = np.concatenate([MARGINS, SHARES])

    def run(self, low: float, high: float) -> tuple[float, float]:
        """The range: both ends shrunk together, then each end alone, unless the grid is symmetric."""
        shares = self.shares
        best = self._choose(low * shares, high * shares)
        for _ in range(ROUNDS if low < 0 < high and not self.spec.symmetric else 0):
            lowest = best[0]
            best = self._choose(np.full(len(shares), lowest), high * shares)
            best = self._choose(low * shares, np.full(len(shares), best[1]))
            if best[0] == lowest:  # the next round would be this one
                break
        return best

    def _choose(self, lows: np.ndarray, highs: np.ndarray) -> tuple[float, float]:
        """The best of these ranges; where the grid reaches further than the range, the grid's."""
        spec = self.spec
        scales, zero_points = _make_grids(lows, highs, spec, self.bound)
        scales = scales.astype(np.float64)
        if spec.symmetric or spec.power_of_two:
            lows, highs = (spec.qmin - zero_points) * scales, (spec.qmax - zero_points) * scales
        beyond = np.zeros(len(lows))
        for tail, ends in zip(self.tails, (-lows, highs), strict=True):
            beyond += 0.0 if tail is None else tail.add_each(ends)
        near = list(range(len(lows)))
        if self.quick is not None:
            losses = self._look(self.quick, (lows, highs), (scales, zero_points), beyond)
            near = np.flatnonzero(losses <= losses.min() + 2 * self.quick.slack).tolist()

        def evaluate(i: int) -> tuple[float, float, float]:
            key = float(scales[i]), int(zero_points[i])
            if key not in self.known:
                self.known[key] = self.measure(self.centres, self.counts, *key, spec)
            return self.known[key] + float(beyond[i]), float(lows[i]), float(highs[i])

        return min(evaluate(i) for i in near)[1:]

    def _look(
        self,
        quick: BinSums,
        ends: tuple[np.ndarray, np.ndarray],
        grids: tuple[np.ndarray, np.ndarray],
        beyond: np.ndarray,
    ) -> np.ndarray:
        """About the loss of each range; infinite for those of which what they cut off alone is more than the least.

        Behind the margins, which come first, each range lies in the one before. The grid of one that is narrower than
        a grid may be begins at its low end, and reaches beyond its high one.
        """
        (lows, highs), (scales, zero_points) = ends, grids
        narrowest = max(self.spec.least_range, LEAST_SCALE * (self.spec.qmax - self.spec.qmin))
        nested = quick.function is None and not self.spec.power_of_two
        losses = np.full(len(beyond), np.inf)
        for start in range(0, len(beyond), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            losses[part] = quick.measure(scales[part], zero_points[part], self.spec) + beyond[part]
            last = min(start + AT_ONCE, len(beyond)) - 1
            reach = lows[last] - scales[last], max(highs[last], narrowest) + scales[last]
            if nested and self._cut(*reach) > losses.min() + quick.slack:
                break
        return losses

    def _cut(self, low: float, high: float) -> float:
        """The squared error of the values outside of a range."""
        return _clip(high, self.centres, self.counts) + _clip(-low, -self.centres, self.counts)


def _measure_squares(function: Function | None) -> Measure:
    """The squared error of a function of the histogram's values on the grid, each taken for the centre of its bin."""

    def measure(centres: np.ndarray, counts: np.ndarray, scale: float, zero_point: int, spec: QuantSpec) -> float:
        rounded = fake_quantize(centres, scale, zero_point, spec)
        error = rounded - centres if function is None else function(rounded) - function(centres)
        return float(np.dot(counts, np.square(error)))

    return measure


def _divergence(centres: np.ndarray, counts: np.ndarray, scale: float, zero_point: int, spec: QuantSpec) -> float:
    """KL divergence of the histogram from the quantized one, where a level's mass is even over the level's bins."""
    quantized_values = fake_quantize(centres, scale, zero_point, spec)
    # The centres ascend, and their levels with them.
    level = np.concatenate([[0], np.cumsum(np.diff(quantized_values) > 0)])
    width = np.bincount(level)
    mass = np.bincount(level, weights=counts)
    share = counts / counts.sum()
    other = mass[level] / width[level] / counts.sum()
    # Without a term for clipped mass an empty range would have no divergence.
    clipped = (np.abs(quantized_values - centres) > scale / 2 + 1e-12).astype(np.float64)
    return float(np.sum(share * np.log(share / other)) + np.dot(share, clipped))
