"""From a histogram of an activation to its scale and zero point."""

from __future__ import annotations

import numpy as np

from ..spec import QParams, QuantSpec
from .histogram import Histogram
from .rounding import snap

# Share of the full range that the squared-error and the entropy search may clip down to, and their steps.
SMALLEST_SHARE = 0.02
CANDIDATES = 100
# A range narrower than this has no information; it stands for a constant tensor.
LEAST_RANGE = 1e-8
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
    if not np.isfinite(low) or high - low < LEAST_RANGE:
        low, high = 0.0, 1.0
    elif kind == "percentile":
        low, high = _percentile(histogram, percentile)
    elif kind in ("squared-error", "entropy"):
        measure = _squared_error if kind == "squared-error" else _divergence
        low, high = _search(histogram, spec, low, high, measure)
    return make_grid(low, high, spec, bound=bound)


def make_grid(low: float, high: float, spec: QuantSpec, *, bound: float | None = None) -> QParams:
    """The asymmetric grid over [low, high] with zero on it; see ``choose_grid`` for ``bound``."""
    low, high = min(low, 0.0), max(high, 0.0)
    levels = spec.qmax - spec.qmin
    if bound is not None:
        scale = np.float32(max(min(high, bound), LEAST_RANGE) / levels)
        while float(scale) * levels > bound:
            scale = np.nextafter(scale, np.float32(0))
        return QParams(np.asarray(scale), np.asarray(spec.qmin, np.int32), spec)
    scale = np.float32(max(high - low, LEAST_RANGE) / levels)
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


def _search(histogram: Histogram, spec: QuantSpec, low: float, high: float, measure) -> tuple[float, float]:
    """The range of least loss: both ends shrunk together, then each end alone around the best."""
    used = histogram.counts > 0
    centres, counts = histogram.centres[used], histogram.counts[used].astype(np.float64)

    def loss(a: float, b: float) -> float:
        grid = make_grid(a, b, spec)
        return measure(centres, counts, float(grid.scale), int(grid.zero_point), spec)

    shares = np.geomspace(1.0, SMALLEST_SHARE, CANDIDATES)
    best = min(((loss(low * s, high * s), low * s, high * s) for s in shares), key=lambda found: found[0])
    if low < 0 < high:
        for ends in ("high", "low"):
            _, a, b = best
            pairs = [(a, b * f) if ends == "high" else (a * f, b) for f in np.linspace(0.5, 1.5, CANDIDATES // 2 + 1)]
            pairs = [(max(x, low), min(y, high)) for x, y in pairs]
            best = min([best, *((loss(x, y), x, y) for x, y in pairs)], key=lambda found: found[0])
    return best[1], best[2]


def _squared_error(centres, counts, scale: float, zero_point: int, spec: QuantSpec) -> float:
    return float(np.dot(counts, np.square(snap(centres, scale, zero_point, spec) - centres)))


def _divergence(centres, counts, scale: float, zero_point: int, spec: QuantSpec) -> float:
    """KL divergence of the histogram from its quantized self, each level's mass spread evenly over its bins."""
    snapped = snap(centres, scale, zero_point, spec)
    _, level, width = np.unique(snapped, return_inverse=True, return_counts=True)
    mass = np.bincount(level, weights=counts)
    share = counts / counts.sum()
    other = mass[level] / width[level] / counts.sum()
    # Clipped mass is lost to the end levels; without this term a range of nothing would have no divergence.
    clipped = (np.abs(snapped - centres) > scale / 2 + 1e-12).astype(np.float64)
    return float(np.sum(share * np.log(share / other)) + np.dot(share, clipped))
