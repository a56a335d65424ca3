"""Estimate the SQNR on other samples from errors of few that were held out and of many that a model was made from."""

from __future__ import annotations

import math

import numpy as np

from .intervals import Interval, sqnr_interval, student_quantile

FEWEST = 8  # samples of either kind; of fewer, those held out say no less alone


def estimate_sqnr(held: np.ndarray, seen: np.ndarray) -> tuple[float, Interval] | None:
    """SQNR in dB on other samples, and its 95% interval.

    held, seen (2, samples): powers of signal and error of samples held out, and of those that the model was made from.
    The latter have smaller errors, but as many times fewer of them are missed: few samples have most of the error, and
    64 may have none of these. So the errors of ``seen`` are multiplied by the ratio of the geometric means of error,
    which no sample rules, and taken together with those held out:

        error = sum e_held + k sum e_seen,   log k = mean (log e - b log a)_held - mean (log e - b log a)_seen

    with b, from 0 to 1, the slope of log e over log a in those held out. The estimate stays within the interval of
    those held out, so that it cannot be far from the truth where they are many. The interval is by the delta method.
    None where a power is 0 or not finite, and with fewer than FEWEST samples of either kind.
    """
    if min(held.shape[1], seen.shape[1]) < FEWEST or not all(
        (x > 0).all() and np.isfinite(x).all() for x in (held, seen)
    ):
        return None
    (a, e), (a_seen, e_seen) = held, seen
    x = np.log(a) - np.log(a).mean()
    power = float(x @ x)
    slope = min(max(float(x @ np.log(e)) / power, 0.0), 1.0) if power > 0 else 0.0
    own, other = (np.log(each[1]) - slope * np.log(each[0]) for each in (held, seen))
    blown = math.exp(own.mean() - other.mean()) * e_seen
    signal, error = a.sum() + a_seen.sum(), e.sum() + blown.sum()
    # What each sample moves in the logarithm of the ratio: by its powers, and by its share in k.
    share = blown.sum() / error
    moved = a / signal - e / error - share * (own - own.mean()) / len(own)
    moved_seen = a_seen / signal - blown / error + share * (other - other.mean()) / len(other)
    variance = sum(
        float(((each - each.mean()) ** 2).sum()) * len(each) / (len(each) - 1) for each in (moved, moved_seen)
    )
    half = student_quantile(len(e) - 1) * math.sqrt(variance)
    low, high = sqnr_interval(np.array([y.sum() for y in (a, e, a**2, e**2, a * e)]), len(e))
    decibels = 10 / math.log(10)
    ratio = decibels * math.log(signal / error)
    clipped = min(max(ratio, low), high)
    return clipped, (min(ratio - decibels * half, clipped), max(ratio + decibels * half, clipped))
