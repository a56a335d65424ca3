"""Print how often the 95% intervals of ``onnxcalib validate`` contain the true value, beside the normal interval.

    python benchmarks/intervals.py [--draws 2000] [--seed 0]

Each row draws ``--draws`` data sets of n samples from a population whose true value is known. Columns: the interval and
the case; n; cover = % of the draws whose interval contains the true value; width = mean width (points, dB, or the unit
of the case); then both for the normal (Wald) interval, estimate +- 1.96 standard errors; for SQNR and speedup it is the
one of the mean over samples. '!' marks coverage outside 95 +- 2. If ours is outside, the program exits with 1. The
Monte-Carlo error of 2000 draws is 0.5 points. Counts are drawn ten times as often, as they cost little.

Cases: agreement of the top class with P(equal); agreement over 20 positions of each sample, whose chance is drawn for
the sample; drop of accuracy with P(lost) and P(gained), in %; drop of a metric of
the user's own, per sample: noise (as of PSNR), few (one sample in ten moves, more down than up, as of IoU), skewed
(log-normal, sigma 1, as of a loss), right or wrong (5% lost, 3% gained); SQNR of powers as quantized networks have
them: even (signal and error log-normal, sigma 0.55 and 0.7, as of CIFAR-10 ResNet-20 at W8A8 and W4A4), outliers
(3% of the samples with ten times the error, as of SqueezeNet 1.1 at W8A8); speedup of 1.8: delays (5% of jitter and
every tenth run delayed), load (noise that correlates by 0.9 from one run to the next).

What misses, and why. '~' stands for '!' where fewer than 4 disagreements or outliers are expected, and does not count:
with counts this coarse hardly any interval has 95 +- 2 (with 1 expected, "at most 2" has 92% and "at most 3" 98%), and
the intervals of drops are too wide. The interval of SQNR with outliers is too short: a set without the rare large
errors does not show that they exist. The mean of 100 skewed differences has the same fault to a lesser degree. The
interval of the speedup under load is too short where the load lasts for as long as a sixth of the runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from onnxcalib.numeric import intervals
from onnxcalib.numeric.intervals import Interval

TARGET, TOLERANCE = 95.0, 2.0
FEW = 4  # expected disagreements, or outliers
COUNT_EFFORT = 10
SIZES = (100, 500, 650, 3000, 10000)
AGREEMENTS = (0.80, 0.90, 0.95, 0.98, 0.99)
DROPS = ((0.005, 0.003), (0.01, 0.008), (0.03, 0.02), (0.05, 0.03), (0.10, 0.03))  # P(lost), P(gained)
METRIC_SIZES = {"noise": (100,), "few": (100, 500), "skewed": (100, 500), "right or wrong": (100, 500, 3000)}
OUTLIERS = 0.03
SQNR_SIZES = (50, 100, 500, 3000)
POSITIONS, POSITION_COUNTS = 20, (5, 20)
POSITION_AGREEMENTS, POSITION_SIZES = (0.90, 0.97, 0.99), (50, 100, 500)
RUNS, SPEEDUP, LASTING = (25, 50, 200, 500), 1.8, 0.9
# Counts repeat; their intervals do not change.
find_agreement = lru_cache(None)(intervals.agreement_interval)
find_drop = lru_cache(None)(intervals.drop_interval)


@dataclass(frozen=True)
class Case:
    """draw: gives one data set; ours and wald: its intervals, in the unit of ``truth``.

    expected: expected number of disagreements or outliers; counted: a data set is the number of these alone.
    """

    interval: str
    name: str
    n: int
    truth: float
    draw: Callable[[np.random.Generator], Any]
    ours: Callable[[Any], Interval]
    wald: Callable[[Any], Interval]
    expected: float = math.inf
    counted: bool = True

    @property
    def effort(self) -> int:
        """Draws for each that is asked for."""
        return COUNT_EFFORT if self.counted else 1


def scale(interval: Interval) -> Interval:
    """Of shares, in points of 100."""
    return 100 * interval[0], 100 * interval[1]


def approximate(values: np.ndarray) -> Interval:
    """The normal interval of a mean."""
    half = intervals.Z * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def approximate_counts(ups: int, downs: int, n: int) -> Interval:
    """The normal interval of a mean of ``ups`` times 1, ``downs`` times -1 and else 0, in points of 100."""
    mean = (ups - downs) / n
    half = intervals.Z * math.sqrt(((ups + downs) / n - mean**2) / n)
    return scale((mean - half, mean + half))


def list_agreements() -> Iterator[Case]:
    for p in AGREEMENTS:
        for n in SIZES:
            yield Case(
                "agreement",
                f"{100 * p:g}%",
                n,
                100 * p,
                lambda rng, n=n, p=p: int(rng.binomial(n, p)),
                lambda equal, n=n: scale(find_agreement(equal, n)),
                lambda equal, n=n: approximate_counts(equal, 0, n),
                n * (1 - p),
            )


def list_positions() -> Iterator[Case]:
    """Agreement over POSITIONS of each sample, whose chance of it is drawn for the sample: beta, of so many counts."""
    for counts in POSITION_COUNTS:
        for p in POSITION_AGREEMENTS:
            for n in POSITION_SIZES:
                yield Case(
                    "positions",
                    f"{100 * p:g}%, {counts} counts",
                    n,
                    100 * p,
                    lambda rng, n=n, a=p * counts, b=(1 - p) * counts: draw_positions(rng, n, a, b),
                    lambda equal, n=n: scale(intervals.position_interval(sum_clusters(equal), n)),
                    lambda equal, n=n: approximate_counts(int(equal.sum()), 0, n * POSITIONS),
                    n * (1 - p),
                    counted=False,
                )


def draw_positions(rng: np.random.Generator, n: int, a: float, b: float) -> np.ndarray:
    """Equal positions of each of n samples, whose chances have the beta distribution of a and b."""
    return rng.binomial(POSITIONS, rng.beta(a, b, n)).astype(np.float64)


def sum_clusters(equal: np.ndarray) -> np.ndarray:
    """What ``Comparison.clusters`` holds of samples with POSITIONS positions each, so many of them equal."""
    count = np.full(len(equal), float(POSITIONS))
    return np.array([x.sum() for x in (equal, count, equal**2, count**2, equal * count)])


def list_drops() -> Iterator[Case]:
    for lost, gained in DROPS:
        for n in SIZES:
            yield Case(
                "drop",
                f"{100 * lost:g} - {100 * gained:g}%",
                n,
                100 * (lost - gained),
                lambda rng, n=n, p=(lost, gained): rng.multinomial(n, [*p, 1 - sum(p)])[:2].tolist(),
                lambda counts, n=n: scale(find_drop(*counts, n)),
                lambda counts, n=n: approximate_counts(*counts, n),
                n * (lost + gained),
            )


def draw_differences(name: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Differences of a metric whose mean is that of ``list_metrics``."""
    if name == "noise":
        return 0.1 + rng.standard_normal(n)
    if name == "skewed":
        return np.exp(rng.standard_normal(n))
    kind = rng.random(n)
    if name == "few":
        down, up, still = rng.beta(2, 4, n), -rng.beta(1, 6, n), 0.01 * rng.standard_normal(n)
        return np.where(kind < 0.06, down, np.where(kind < 0.10, up, still))
    return (kind < 0.05).astype(float) - (kind > 0.97)


def list_metrics() -> Iterator[Case]:
    means = {"noise": 0.1, "skewed": math.exp(0.5), "few": 0.06 * 2 / 6 - 0.04 / 7, "right or wrong": 0.02}
    for name, sizes in METRIC_SIZES.items():
        for n in sizes:
            yield Case(
                "metric",
                name,
                n,
                means[name],
                lambda rng, n=n, name=name: draw_differences(name, n, rng),
                intervals.mean_interval,
                approximate,
                counted=False,
            )


def bound_sqnr(powers: np.ndarray) -> Interval:
    signal, error = powers
    sums = [x.sum() for x in (signal, error, signal**2, error**2, signal * error)]
    return intervals.sqnr_interval(np.array(sums), len(signal))


def draw_powers(outliers: bool, n: int, rng: np.random.Generator) -> np.ndarray:
    """Powers of signal and error, (2, n)."""
    sigmas = np.array([[0.4], [0.5]] if outliers else [[0.55], [0.7]])
    powers = np.exp(sigmas * rng.standard_normal((2, n)))
    if outliers:
        powers[1] *= np.where(rng.random(n) < OUTLIERS, 10, 1)
    return powers


def list_sqnrs() -> Iterator[Case]:
    truths = {"even": (0.55**2 - 0.7**2) / 2, "outliers": (0.4**2 - 0.5**2) / 2 - math.log(1 + OUTLIERS * 9)}
    for name, truth in truths.items():
        for n in SQNR_SIZES:
            yield Case(
                "sqnr",
                name,
                n,
                10 / math.log(10) * truth,
                lambda rng, n=n, outliers=name == "outliers": draw_powers(outliers, n, rng),
                bound_sqnr,
                lambda powers: approximate(10 * np.log10(powers[0] / powers[1])),  # as of a mean of dB
                OUTLIERS * n if name == "outliers" else math.inf,
                counted=False,
            )


def draw_ratios(n: int, rng: np.random.Generator) -> np.ndarray:
    """Their logarithm is symmetric about that of SPEEDUP, which is the median therefore."""
    times = np.exp(0.05 * rng.standard_normal((2, n)))
    times *= 1 + np.where(rng.random((2, n)) < 0.1, rng.exponential(size=(2, n)), 0)
    return SPEEDUP * times[0] / times[1]


def draw_loaded_ratios(n: int, rng: np.random.Generator) -> np.ndarray:
    """With noise of deviation 10% that correlates by LASTING from one ratio to the next."""
    noise = rng.standard_normal(n)
    noise[1:] *= math.sqrt(1 - LASTING**2)
    for i in range(1, n):
        noise[i] += LASTING * noise[i - 1]
    return SPEEDUP * np.exp(0.1 * noise)


def list_speedups() -> Iterator[Case]:
    for name, make in (("delays", draw_ratios), ("load", draw_loaded_ratios)):
        for n in RUNS:
            draw = lambda rng, n=n, make=make: make(n, rng)  # noqa: E731
            yield Case("speedup", name, n, SPEEDUP, draw, intervals.median_ratio_interval, approximate, counted=False)


def measure(case: Case, draws: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Coverage in % and mean width of both intervals."""
    found = np.empty((draws, 2, 2))
    for i in range(draws):
        data = case.draw(rng)
        found[i] = case.ours(data), case.wald(data)
    held = (found[..., 0] <= case.truth) & (case.truth <= found[..., 1])
    return list(zip(100 * held.mean(0), (found[..., 1] - found[..., 0]).mean(0), strict=True))


def mark(cover: float, expected: float) -> str:
    """' ' within TOLERANCE, '~' outside for want of disagreements or outliers, else '!'."""
    if abs(cover - TARGET) <= TOLERANCE:
        return " "
    return "~" if expected < FEW else "!"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000, help="data sets of each case")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    print(f"{'interval':10}{'case':>16}{'n':>7}{'cover':>8} {'width':>9}{'wald':>9} {'width':>9}", flush=True)
    marks = []
    cases = (list_agreements, list_drops, list_metrics, list_sqnrs, list_speedups, list_positions)
    for i, case in enumerate(case for kind in cases for case in kind()):
        rng = np.random.default_rng((arguments.seed, i))
        (cover, width), (wald, wald_width) = measure(case, arguments.draws * case.effort, rng)
        marks.append(mark(cover, case.expected))
        print(
            f"{case.interval:10}{case.name:>16}{case.n:7}{cover:8.1f}{marks[-1]}{width:9.3f}"
            f"{wald:9.1f}{mark(wald, case.expected)}{wald_width:9.3f}",
            flush=True,
        )
    few = f"{marks.count('~')} with fewer than {FEW} expected disagreements or outliers, which are too few to tell"
    print(f"{len(marks)} cases; outside {TARGET:g} +- {TOLERANCE:g}: {marks.count('!')}, and {few}")
    return int("!" in marks)


if __name__ == "__main__":
    sys.exit(main())
