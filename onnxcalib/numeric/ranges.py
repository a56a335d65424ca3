"""From a histogram of an activation to its scale and zero point."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..spec import QParams, QuantSpec
from .histogram import Histogram
from .rounding import fake_quantize

# Shares of an end of the full range that the squared-error and the entropy search try: 5% apart, down to a thousandth.
SHARES = np.geomspace(1.0, 0.001, 142)
# Rounds in which each end is searched with the other one fixed; a third did not change a decimal.
ROUNDS = 2
# The least scale: a range of fewer than so much a level has no information, and stands for a constant tensor.
LEAST_SCALE = float(np.finfo(np.float32).tiny)
RANGE_KINDS = ("min-max", "percentile", "squared-error", "entropy")


def choose_grid(
    histogram: Histogram,
    spec: QuantSpec,
    *,
    kind: str = "squared-error",
    percentile: float = 99.99,
    bound: float | None = None,
) -> QParams:
    """The grid of one activation tensor from its histogram.

    ``kind`` is one of RANGE_KINDS. ``bound`` c marks a tensor that a Relu or Clip(0, c) makes: its zero point is 0 and
    its range ends inside [0, c], as onnxruntime demands to fuse the activation. Zero is always on the grid.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if not np.isfinite(low) or high - low < LEAST_SCALE * (spec.qmax - spec.qmin):
        low, high = 0.0, 1.0
    elif kind == "percentile":
        low, high = _percentile(histogram, percentile)
    elif kind in ("squared-error", "entropy"):
        measure = _squared_error if kind == "squared-error" else _divergence
        low, high = _search(histogram, lambda a, b: make_grid(a, b, spec, bound=bound), measure)
    return make_grid(low, high, spec, bound=bound)


def make_grid(low: float, high: float, spec: QuantSpec, *, bound: float | None = None) -> QParams:
    """The asymmetric grid over [low, high] with zero on it; see ``choose_grid`` for ``bound``."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = spec.qmax - spec.qmin
    if bound is not None:
        scale = np.float32(max(min(high, bound) / levels, LEAST_SCALE))
        while float(scale) * levels > bound and scale > LEAST_SCALE:  # below it there is no fused kernel to please
            scale = np.nextafter(scale, np.float32(0))
        return QParams(np.asarray(scale), np.asarray(spec.qmin, np.int32), spec)
    scale = np.float32(max((high - low) / levels, LEAST_SCALE))
    zero_point = np.clip(np.rint(spec.qmin - low / float(scale)), spec.qmin, spec.qmax)
    return QParams(np.asarray(scale), np.asarray(zero_point, np.int32), spec)


def _percentile(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """Cut (100 - percentile) / 2 percent off each side that has values."""
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


def _search(histogram: Histogram, grid_over: Callable[[float, float], QParams], measure) -> tuple[float, float]:
    """The range of least loss: both ends shrunk together, then each end alone."""
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)

    def judge(a: float, b: float) -> tuple[float, float, float]:
        grid = grid_over(a, b)
        return measure(centres, counts, float(grid.scale), int(grid.zero_point), grid.spec), a, b

    best = min(judge(low * share, high * share) for share in SHARES)
    for _ in range(ROUNDS if low < 0 < high else 0):
        best = min(judge(best[1], high * share) for share in SHARES)
        best = min(judge(low * share, best[2]) for share in SHARES)
    return best[1], best[2]


def _squared_error(centres, counts, scale: float, zero_point: int, spec: QuantSpec) -> float:
    return float(np.dot(counts, np.square(fake_quantize(centres, scale, zero_point, spec) - centres)))


def _divergence(centres, counts, scale: float, zero_point: int, spec: QuantSpec) -> float:
    """KL divergence of the histogram from its quantized self, each level's mass spread evenly over its bins."""
    quantized_values = fake_quantize(centres, scale, zero_point, spec)
    # Centres ascend, and so do their levels.
    level = np.concatenate([[0], np.cumsum(np.diff(quantized_values) > 0)])
    width = np.bincount(level)
    mass = np.bincount(level, weights=counts)
    share = counts / counts.sum()
    other = mass[level] / width[level] / counts.sum()
    # Clipped mass is lost to the end levels; without this term a range of nothing would have no divergence.
    clipped = (np.abs(quantized_values - centres) > scale / 2 + 1e-12).astype(np.float64)
    return float(np.sum(share * np.log(share / other)) + np.dot(share, clipped))
