"""From the histogram of an activation to its scale and zero point."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import special

from ..spec import QParams, QuantSpec
from .histogram import Histogram
from .rounding import fake_quantize

# Ends of a range that the search tries, as shares of the full range's end: 5% apart, down to a thousandth.
SHARES = np.geomspace(1.0, 0.001, 142)
# Ends beyond what was seen, as multiples of it, for samples still to come. With up to 1.3 small tables gain 0.4
# dB more, and layers behind a pool lose 0.6.
MARGINS = np.geomspace(1.025, 1.15, 6)
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
    kind. bound: c of a tensor that a Clip(0, c) makes, or infinity of a Relu's. Its zero point is qmin and its range
    ends inside [0, c]: onnxruntime fuses the activation only then. function: one of FUNCTIONS that alone reads the
    tensor; the squared error is then that of what it gives. Swish makes next to nothing of all values below -8, so that
    they need no levels.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if not np.isfinite(low) or high - low < LEAST_SCALE * (spec.qmax - spec.qmin):
        low, high = 0.0, 1.0
    elif kind == "percentile":
        low, high = _percentile(histogram, percentile)
    elif kind in ("squared-error", "entropy"):
        measure = _measure_squares(FUNCTIONS.get(function)) if kind == "squared-error" else _divergence
        tails = _fit_tails(histogram) if kind == "squared-error" and function is None else None
        low, high = _search(histogram, lambda a, b: make_grid(a, b, spec, bound=bound), measure, tails)
    return make_grid(low, high, spec, bound=bound)


def make_grid(low: float, high: float, spec: QuantSpec, *, bound: float | None = None) -> QParams:
    """The asymmetric grid over [low, high], extended to hold zero; ``bound`` as in ``choose_grid``."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = spec.qmax - spec.qmin
    if bound is not None:
        scale = limit_scale(np.float32(max(min(high, bound) / levels, LEAST_SCALE)), levels, bound)
        return QParams(np.asarray(scale), np.asarray(spec.qmin, np.int32), spec)
    scale = np.float32(max((high - low) / levels, LEAST_SCALE))
    zero_point = np.clip(np.rint(spec.qmin - low / float(scale)), spec.qmin, spec.qmax)
    return QParams(np.asarray(scale), np.asarray(zero_point, np.int32), spec)


def limit_scale(scale: np.float32, levels: int, bound: float) -> np.float32:
    """The scale, lowered where ``levels`` of it reach beyond ``bound``, but to LEAST_SCALE at most."""
    while float(scale) * levels > bound and scale > LEAST_SCALE:
        scale = np.nextafter(min(scale, np.float32(bound / levels)), np.float32(0))
    return scale


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
    """The range of least loss: both ends shrunk together, then each end alone."""
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)
    shares = SHARES if tails is None else np.concatenate([MARGINS, SHARES])

    def evaluate(a: float, b: float) -> tuple[float, float, float]:
        grid = grid_over(a, b)
        loss = measure(centres, counts, float(grid.scale), int(grid.zero_point), grid.spec)
        return loss + (0.0 if tails is None else tails[0](a) + tails[1](b)), a, b

    best = min(evaluate(low * share, high * share) for share in shares)
    for _ in range(ROUNDS if low < 0 < high else 0):
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
