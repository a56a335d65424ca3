"""The real-valued optimum of a layer, and how far it keeps to the float weight.

The optimum of least squared error on few samples, or behind a quantized prefix, fits noise too. A ``Prior`` pulls it
towards the float weight; held-out samples choose how strongly.

Shapes: G groups, C output channels and K inputs a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .gram import Moments, divide, factorize
from .products import TILE

# Candidate ridges of the optimum, in units of the mean input variance. A weak ridge fits the noise of the quantized
# prefix, and of few samples. Which ridge is best differs by layer, so that held-out samples choose. Twice as many raise
# the error on these by less than a tenth of that of 8-bit weights.
RIDGES = (0.003, 0.03, 0.3, 3.0, 30.0)
# The search for a ridge starts here, about the middle of those that layers of networks chose.
FIRST_RIDGE = RIDGES.index(0.3)
# Sums of output channels of a group on which a ridge is judged.
JUDGED_SUMS = 64
# Square of float32's rounding, generously: the least variance that can be told from a mean of size 1.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Prior:
    """How much the optimum keeps to the float weight W: ``W* = W + trust (W_r - W)``.

    W_r is the ridge regression towards W: ``ridge``, in units of the mean input variance, keeps W where inputs vary
    little. ``trust``, from 0 to 1, shrinks the rest of the change, also where inputs vary much: least squares fits the
    error of the quantized prefix there, part of which is noise.
    """

    ridge: float = 0.3
    trust: float = 1.0


def choose_prior(fitted: Moments, held_out: Moments, weight: torch.Tensor) -> Prior:
    """The prior whose real-valued optimum on ``fitted`` has the least squared error on ``held_out``.

    For each ridge the best trust t has a closed form: with D = W_r - W the error of ``W + t D`` is quadratic in t. The
    error falls with the ridge up to the best one, and rises behind it, so that ridges are tried from FIRST_RIDGE on
    as long as each is better than the last.
    """
    judge = _Judge(fitted, held_out, weight)
    best = FIRST_RIDGE
    for step in (1, -1):
        while 0 <= best + step < len(RIDGES) and judge.error(best + step) < judge.error(best):
            best += step
    return judge.prior(best)


@dataclass(frozen=True)
class Equations:
    """What least squares asks of the change D of the float weight W: ``D (A + r I) = C - W A``, in float32.

    Sums are float32's before they come here, and D is small beside W. gram A (G, K, K) and slope ``C - W A`` (G, C, K)
    are in units of the mean input variance, so that their squares do not leave float32's range. unit (G, 1) is this
    variance, and least (G, 1) the least ridge, see ``damping``.
    """

    gram: torch.Tensor
    slope: torch.Tensor
    unit: torch.Tensor
    least: torch.Tensor

    @classmethod
    def of(cls, moments: Moments, weight: torch.Tensor, unit: torch.Tensor | None = None) -> Equations:
        """The equations for ``weight`` (G, C, K), in the units of others if these are given."""
        unit = damping(moments, 1.0) if unit is None else unit
        gram, cross, weight = _scale(moments.gram, unit), _scale(moments.cross, unit), weight.float()
        slope = weight @ cross.sub_(gram) if moments.of_input else cross.sub_(weight @ gram)
        return cls(gram, slope, unit, (damping(moments, 0.0) / unit).float())

    def solve(self, ridge: float) -> torch.Tensor:
        """D (G, C, K)."""
        gram = self.gram.clone()
        gram.diagonal(dim1=1, dim2=2).add_(self.least.clamp_min(ridge))
        return divide(self.slope, factorize(gram))


def _scale(rows: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """rows (G, R, K) in units of ``unit`` (G, 1), as float32; few at once, which stay in the processor's cache."""
    found = torch.empty_like(rows, dtype=torch.float32)
    for part, into in zip(rows.split(TILE, 1), found.split(TILE, 1), strict=True):
        into.copy_(part / unit[..., None])
    return found


class _Judge:
    """Tries ridges on random sums of the channels."""

    def __init__(self, fitted: Moments, held_out: Moments, weight: torch.Tensor) -> None:
        if fitted.of_input:
            (weight,) = _sum_channels((weight,))
        else:
            weight, *crosses = _sum_channels((weight, fitted.cross, held_out.cross))
            fitted, held_out = (
                replace(each, cross=sums) for each, sums in zip((fitted, held_out), crosses, strict=True)
            )
        self.fitted = Equations.of(fitted, weight)
        self.held_out = Equations.of(held_out, weight, self.fitted.unit)
        self._tried: dict[int, tuple[float, float]] = {}

    def error(self, number: int) -> float:
        """Of the ridge of this number with its best trust, the squared error above that of the float weight."""
        return self._try_ridge(number)[0]

    def prior(self, number: int) -> Prior:
        """The ridge of this number with its best trust."""
        return Prior(RIDGES[number], self._try_ridge(number)[1])

    def _try_ridge(self, number: int) -> tuple[float, float]:
        """Error and trust of a ridge, which is tried once."""
        if number not in self._tried:
            change = self.fitted.solve(RIDGES[number])
            power, gain = (
                float(((each * change).sum((1, 2), dtype=torch.float64) * self.fitted.unit.flatten()).sum())
                for each in (change @ self.held_out.gram, self.held_out.slope)
            )
            trust = min(max(gain / power, 0.0), 1.0) if power > 0 else 0.0
            self._tried[number] = trust * trust * power - 2 * trust * gain, trust
        return self._tried[number]


def _sum_channels(each: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Of every (G, C, K) sums of channels with random signs, JUDGED_SUMS or fewer; each channel is in one sum.

    The expected square of a sum, in any metric, is the sum of its channels' squares (Hutchinson's estimate of a trace):
    so no channel is missed, as one of few that change much would be where some channels stand for all.
    """
    channels = each[0].shape[1]
    if channels <= JUDGED_SUMS:
        return list(each)
    number = torch.arange(channels)
    signs = torch.zeros(JUDGED_SUMS, channels, dtype=torch.float64)
    signs[number % JUDGED_SUMS, number] = (
        torch.randint(2, (channels,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    )
    return [signs.to(x) @ x for x in each]


def damping(moments: Moments, ridge: float) -> torch.Tensor:
    """``ridge`` times the mean variance of a group's inputs, (G, 1), and always more than their moments' rounding.

    Inputs that hardly vary say nothing about their weights. Any positive damping lets these keep their float values.
    """
    variance = moments.gram.diagonal(dim1=1, dim2=2).mean(1)
    least = ROUNDING * moments.input_mean.square().mean(1) + torch.finfo(torch.float32).tiny
    return torch.maximum(ridge * variance, least)[:, None]
