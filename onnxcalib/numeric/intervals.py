"""95% confidence intervals of what ``validate`` measures, for samples drawn at random from a larger population.

Coverage is how often an interval contains the population's value; ``benchmarks/intervals.py`` measures it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

Interval = tuple[float, float]  # (low, high)
UNKNOWN: Interval = (-math.inf, math.inf)  # what values say that are none or are not finite

CONFIDENCE = 0.95
TWO_SIDED = (1 + CONFIDENCE) / 2
Z = float(special.ndtri(TWO_SIDED))
# (1999 + 1) 0.95 is a whole number, as Davison and Hinkley 1997 advise. More resamples change the width by below 1%.
RESAMPLES, SEED = 1999, 0
RESAMPLED_AT_ONCE = 2**20  # values, so that many samples need no more memory than few
# Deviation of a resample over the sample's, below which it is rounding error and all values of the resample are equal.
LEAST_SPREAD = 1e-9
# The fewest values whose smallest and largest enclose the median with 95% or more. Fewer blocks are longer, and longer
# blocks depend less on each other.
BLOCKS = 6


def student_quantile(freedom: int) -> float:
    """The end of the two-sided interval of Student's t with so many degrees of freedom."""
    return float(special.stdtrit(freedom, TWO_SIDED))


def agreement_interval(equal: int, total: int) -> Interval:
    """Interval of a proportion, ``equal`` of ``total``, as (low, high): Wilson 1927, the score test inverted.

    It is never a point, though all or none are equal; (0, 1) with a total of 0.

    Exact coverage, 100 to 10,000 samples, p from 0.5 to 0.998: within 95 +- 2 points wherever 7 disagreements or more
    are expected. With 3 to 5 expected it misses that in 12% of the cases, mid-p in 20%, arc sine, Jeffreys and
    likelihood ratio in 27%, Agresti-Coull in 60%, Clopper-Pearson in 71%; with fewer, counts are too coarse for any
    method. Brown, Cai and DasGupta 2001, who compare them, recommend it too.
    """
    if not total:
        return 0.0, 1.0
    return wilson_interval(equal / total, total)


def position_interval(clusters: np.ndarray, samples: int) -> Interval:
    """Interval of a share of positions, sum e / sum n, where positions of one sample depend on each other.

    clusters (5,): sums over ``samples`` samples of e, n, e^2, n^2 and e n, n positions of which e agree. It is Wilson's
    for so many independent positions as have the variance of the ratio (Cochran 1977, chapter 6; Korn and Graubard 1998
    for the effective number), and for one position a sample where no variance is seen. With one position a sample it is
    ``agreement_interval``.

    Coverage over 2,000 draws, 20 positions a sample whose chance varies between samples by beta distributions of 5 and
    20 effective counts, p of 0.9 and 0.97: 91 to 96% with 50 to 500 samples, where Wilson's of all positions has 65 to
    87. At p of 0.99 it is 88% with 50 samples of the first kind.
    """
    equal, total, equal2, total2, cross = map(float, clusters)
    if not total or not samples:
        return 0.0, 1.0
    share = equal / total
    independent = min(float(samples), total)
    if 0 < share < 1 and samples > 1:
        spread = max(equal2 - 2 * share * cross + share**2 * total2, 0.0) * samples / (samples - 1)
        if spread > 0:
            independent = min(max(share * (1 - share) * total**2 / spread, 1.0), total)
    return wilson_interval(share, independent)


def wilson_interval(share: float, independent: float) -> Interval:
    """Wilson's interval of a share that is known as well as that of so many independent draws."""
    z = Z**2 / independent
    middle, half = (share + z / 2) / (1 + z), math.sqrt(z * (share * (1 - share) + z / 4)) / (1 + z)
    # The ends of none and of all are exact, which the rounding of the sums is not.
    return max(middle - half, 0.0) if share > 0 else 0.0, min(middle + half, 1.0) if share < 1 else 1.0


def drop_interval(lost: int, gained: int, total: int) -> Interval:
    """Interval of the difference of two accuracies on the same samples, ``(lost - gained) / total``: Tango 1998.

    lost: samples that only the first model has right; gained: only the second. The interval holds every difference
    delta that the score test (McNemar's at delta 0) accepts:

        (lost - gained - total delta)^2 <= z^2 total (2 q + delta (1 - delta))

    with q the most likely P(gained) given delta. Exact coverage, 100 to 3000 samples, 0.5 to 10% lost and 0.3 to 10%
    gained: 95 +- 1.7 points wherever lost + gained of 5 or more is expected; there Agresti-Min and Newcombe's method 10
    reach 98 and 99, the likelihood ratio sinks to 90, Wald to 92. With fewer than 3 expected it is wide: 97 to 100 (the
    percentile bootstrap sinks to 61). Nothing lost or gained still gives an interval; (-1, 1) with a total of 0.
    """
    return _find_least_drop(lost, gained, total), -_find_least_drop(gained, lost, total)


def _find_least_drop(lost: int, gained: int, total: int) -> float:
    # In these two cases the equation below has roots that are not the test's; its root is solved by hand.
    if lost + gained == 0:
        return -(Z**2) / (total + Z**2)
    if lost == total:
        return total / (total + Z**2)

    def exceed(delta: float) -> float:
        b = (2 * total - lost + gained) * delta - lost - gained
        root = math.sqrt(max(b**2 + 8 * total * gained * delta * (1 - delta), 0.0))
        variance = total * ((root - b) / (2 * total) + delta * (1 - delta))
        return lost - gained - total * delta - Z * math.sqrt(max(variance, 0.0))

    from scipy import optimize  # not for quantize, whose start it would delay by a second

    return float(optimize.brentq(exceed, -1.0, (lost - gained) / total, xtol=1e-12))


def mean_interval(differences: np.ndarray, spread: float = 0.0) -> Interval:
    """Interval of the mean of ``differences`` (samples,) of a metric: symmetric studentized bootstrap, Hall 1988.

        mean +- quantile(|mean* - mean| / deviation*) deviation     over resamples *, and no less than Student's t

    On skewed differences the percentile and BCa bootstraps cover the mean less often: with 100 log-normal differences
    91 and 92% (this interval: 93), with 20% outliers 92 and 90 (95).

    Differences that are all 0 or of one size, as right and wrong answers give, go to ``drop_interval``: resampling
    cannot show a result that was not drawn. Where all are 0 the size is ``spread``, the distance of two values that the
    metric can have; without one the interval is (0, 0).

    (-inf, inf) without differences, and with one that is not finite.
    """
    if not differences.size or not np.isfinite(differences).all():
        return UNKNOWN
    size = float(np.abs(differences).max()) or spread
    if np.isin(differences, (-size, 0, size)).all():
        low, high = drop_interval(int((differences > 0).sum()), int((differences < 0).sum()), differences.size)
        return size * low, size * high
    from scipy import stats  # as optimize above

    mean, deviation = float(differences.mean()), float(differences.std())
    drawn = stats.bootstrap(
        ((differences - mean) / deviation,),
        _studentize,
        n_resamples=RESAMPLES,
        batch=max(1, RESAMPLED_AT_ONCE // differences.size),
        method="percentile",
        random_state=np.random.default_rng(SEED),
    ).bootstrap_distribution
    student = student_quantile(differences.size - 1) / math.sqrt(differences.size - 1)
    half = deviation * max(float(np.quantile(drawn, CONFIDENCE)), float(student))
    return mean - half, mean + half


def _studentize(values: np.ndarray, axis: int) -> np.ndarray:
    """``|mean| / deviation`` along ``axis``; 0 where all values are equal, as such a resample shows no deviation."""
    spread = np.asarray(values.std(axis=axis))
    ratio = np.zeros(spread.shape)
    np.divide(np.abs(values.mean(axis=axis)), spread, out=ratio, where=spread > LEAST_SPREAD)
    return ratio


def sqnr_interval(powers: np.ndarray, samples: int) -> Interval:
    """Interval of ``10 log10(sum a / sum e)`` in dB, with a and e the powers of signal and error of each sample.

    powers (5,): sums over samples of a, e, a^2, e^2 and a e. The delta method on the logarithm of a ratio of means
    (Cochran 1977, chapter 6), with Student's t of samples - 1 degrees of freedom:

        var log(sum a / sum e) = n / (n - 1) (sum a^2 / (sum a)^2 + sum e^2 / (sum e)^2 - 2 sum a e / (sum a sum e))

    With 50 samples or more of log-normal powers, as quantized networks have them, coverage is 94 to 95%. Where 3% of
    the samples have ten times the error it is 88% with 100 samples and 94% with 500.

    (inf, inf) without any error, also without a signal; else (-inf, inf) with fewer than two samples, without a signal,
    or with powers that are not finite. Equal powers of all samples leave no doubt: low and high are the ratio.
    """
    signal, error, signal2, error2, cross = map(float, powers)
    if error == 0:
        return math.inf, math.inf
    if samples < 2 or signal == 0 or not np.isfinite(powers).all():
        return UNKNOWN
    variance = signal2 / signal / signal + error2 / error / error - 2 * cross / signal / error  # squares may overflow
    deviation = math.sqrt(max(variance, 0.0) * samples / (samples - 1))
    half = student_quantile(samples - 1) * deviation
    ratio, decibels = math.log(signal) - math.log(error), 10 / math.log(10)
    return decibels * (ratio - half), decibels * (ratio + half)


def median_ratio_interval(ratios: np.ndarray) -> Interval:
    """Interval of the median of ``ratios`` (n,) of paired times in the order in which they were measured.

    Successive times depend on each other, as the load of a machine lasts for many runs. The ratios are therefore split
    into BLOCKS blocks of successive ones, and the interval is that of the sign test on the blocks' medians, of any
    distribution: the k-th smallest and k-th largest enclose the median with probability 1 - 2 P(Binomial(BLOCKS, 1/2) <
    k), and the ends are interpolated between the largest k that has 95% or more and the next k (Hettmansperger and
    Sheather 1986). The interval always holds the median of all ratios.

    Independent ratios: coverage is 93 to 97%. Ratios whose correlation is 0.9 from one to the next, and 0.9^j over j:
    90 to 94% with 100 ratios or more, 79% with 50, 65% with 25. No interval shows a change that takes longer than the
    measurement. With fewer than BLOCKS ratios it is the smallest and the largest. Equal ratios are both ends.
    (-inf, inf) without ratios, and with one that is not finite.
    """
    n = BLOCKS
    if not len(ratios) or not np.isfinite(ratios).all():
        return UNKNOWN
    if len(ratios) < n:
        return float(ratios.min()), float(ratios.max())
    ordered = np.sort([np.median(block) for block in np.array_split(ratios, n)])
    below = np.cumsum([math.comb(n, i) for i in range(n)]) / 2**n  # P(Binomial(n, 1/2) <= i)
    k = int(np.argmax(below >= 1 - TWO_SIDED))
    outer, inner = 1 - 2 * below[[k - 1, k]]
    share = (outer - CONFIDENCE) / (outer - inner)
    weight = (n - k) * share / (k + (n - 2 * k) * share)
    low, high = (1 - weight) * ordered[[k - 1, n - k]] + weight * ordered[[k, n - k - 1]]
    median = float(np.median(ratios))
    return min(float(low), median), max(float(high), median)
