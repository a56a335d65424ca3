"""From the histogram of an activation to its scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from ..spec import QParams, QuantSpec
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
        measure = _measure_squares(FUNCTIONS.get(function)) if kind == "squared-error" else _divergence
        tails = _fit_tails(histogram) if kind == "squared-error" and function is None else None
        low, high = _search(histogram, lambda a, b: make_grid(a, b, spec, bound=bound), measure, tails)
    return make_grid(low, high, spec, bound=bound)


def fix_grid(scale: float, zero_point: int, spec: QuantSpec) -> QParams:
    """The grid of this scale and this zero point."""
    return QParams(np.asarray(scale, np.float32), np.asarray(zero_point, np.int32), spec)


def make_grid(low: float, high: float, spec: QuantSpec, *, bound: float | None = None) -> QParams:
    """The grid over [low, high], extended to hold zero; ``bound`` as in ``choose_grid``.

    A scale that must be a power of two is the least one whose grid holds the range.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    limited = bound is not None and not spec.power_of_two
    high = min(high, bound) if bound is not None and limited else high
    zero_point = _find_zero_point(spec, bound)
    if zero_point is None:
        step = (high - low) / (spec.qmax - spec.qmin)
    else:
        below, above = zero_point - spec.qmin, spec.qmax - zero_point
        step = max(high / above, -low / below if below else 0.0)
    scale = np.float32(max(step, LEAST_SCALE))
    if bound is not None and limited and zero_point is not None:
        scale = limit_scale(scale, spec.qmax - zero_point, bound)
    scale = raise_scale(scale, spec)
    if zero_point is None:
        zero_point = _place_zero(low, high, float(scale), spec)
    return QParams(np.asarray(scale), np.asarray(zero_point, np.int32), spec)


def _find_zero_point(spec: QuantSpec, bound: float | None) -> int | None:
    """The zero point of every grid of the spec; None where the range decides."""
    if spec.symmetric:
        return spec.middle
    return None if bound is None else spec.qmin


def _place_zero(low: float, high: float, scale: float, spec: QuantSpec) -> int:
    """The zero point with which the grid holds [low, high]; levels that are left over lie on both sides of it."""
    lowest = spec.qmin - low / scale
    left = (spec.qmax - spec.qmin - (high - low) / scale) / 2 if spec.power_of_two and low < 0 < high else 0.0
    return int(np.clip(np.rint(lowest + left), spec.qmin, spec.qmax))


def raise_scale(scale: np.float32, spec: QuantSpec) -> np.float32:
    """The least scale, from this one on, that the spec allows: of its least range, and a power of two where it asks."""
    levels = spec.qmax - spec.qmin
    while float(scale) * levels < spec.least_range:
        scale = np.nextafter(max(scale, np.float32(spec.least_range / levels)), np.float32(np.inf))
    return np.float32(next_power(np.asarray(scale))) if spec.power_of_two else scale


def limit_scale(scale: np.float32, levels: int, bound: float) -> np.float32:
    """The scale, lowered where ``levels`` of it reach beyond ``bound``, but to LEAST_SCALE at most."""
    while float(scale) * levels > bound and scale > LEAST_SCALE:
        scale = np.nextafter(min(scale, np.float32(bound / levels)), np.float32(0))
    return scale


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


Tail = Callable[[float], float]  # end of a range -> squared error that unseen samples add beyond it


def _fit_tails(histogram: Histogram) -> tuple[Tail, Tail] | None:
    """What samples that were not seen add to the squared error, below a low and above a high end."""
    if histogram.peaks.shape[1] < LEAST_SAMPLES:
        return None
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    below = _fit_tail(-histogram.peaks[0], -centres, counts)
    return (lambda end: below(-end)), _fit_tail(histogram.peaks[1], centres, counts)


def _fit_tail(peaks: np.ndarray, centres: np.ndarray, counts: np.ndarray) -> Tail:
    """An exponential tail behind the peak that the square root of all peaks exceed, by its mean excess.

    The square of what a range cuts off falls as the number of peaks beyond its end does. Where a sample has many
    values, their rounding outweighs it. It decides where samples have few, as rows of tables have.
    """
    above = math.ceil(math.sqrt(len(peaks)))
    ordered = np.sort(peaks)[::-1]
    start, excess = float(ordered[above]), float(np.mean(ordered[:above] - ordered[above]))
    if start <= 0 or excess <= 0:
        return lambda end: 0.0
    total = _clip(start, centres, counts)

    def add(end: float) -> float:
        expected = total * math.exp((start - end) / excess) if end >= start else 0.0
        return max(0.0, expected - _clip(end, centres, counts))

    return add


def _clip(end: float, centres: np.ndarray, counts: np.ndarray) -> float:
    """The squared error of values beyond the end of a range."""
    return float(np.dot(counts, np.square(np.maximum(centres - end, 0))))


def _search(
    histogram: Histogram,
    grid_over: Callable[[float, float], QParams],
    measure: Measure,
    tails: tuple[Tail, Tail] | None = None,
) -> tuple[float, float]:
    """The range of least loss: both ends shrunk together, then each end alone, unless the grid is symmetric."""
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    spec = grid_over(low, high).spec
    known: dict[tuple[float, int], float] = {}  # many shares have the same power of two
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    shares = SHARES if tails is None else np.concatenate([MARGINS, SHARES])

    def evaluate(a: float, b: float) -> tuple[float, float, float]:
        grid = grid_over(a, b)
        scale, zero_point = float(grid.scale), int(grid.zero_point)
        if (scale, zero_point) not in known:
            known[scale, zero_point] = measure(centres, counts, scale, zero_point, spec)
        if spec.symmetric or spec.power_of_two:  # the grid reaches further than the range
            a, b = (spec.qmin - zero_point) * scale, (spec.qmax - zero_point) * scale
        return known[scale, zero_point] + (0.0 if tails is None else tails[0](a) + tails[1](b)), a, b

    best = min(evaluate(low * share, high * share) for share in shares)
    for _ in range(ROUNDS if low < 0 < high and not spec.symmetric else 0):
        best = min(evaluate(best[1], high * share) for share in shares)
        best = min(evaluate(low * share, best[2]) for share in shares)
    return best[1], best[2]


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
