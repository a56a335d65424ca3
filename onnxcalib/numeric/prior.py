"""The real-valued optimum of a layer, and how far it keeps to the float weight.

The optimum of least squared error on few samples, or behind a quantized prefix, fits noise too. A ``Prior`` pulls it
towards the float weight; held-out samples choose how strongly.

Shapes: G groups, C output channels and K inputs a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from .gram import Moments

# Candidate ridges of the optimum, in units of the mean input variance. A weak ridge fits the noise of the quantized
# prefix, and of few samples. Which ridge is best differs by layer, so that held-out samples choose.
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# The search for a ridge starts here, about the middle of those that layers of networks chose.
FIRST_RIDGE = RIDGES.index(0.1)
# Output channels of a group on which a ridge is judged. Two numbers are chosen, and each channel has K weights.
JUDGED_CHANNELS = 256
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


class _Judge:
    """Tries ridges on some of the channels, in float32: the prior is a matter of per cents.

    Moments are in units of the mean variance of a group's inputs, so that their squares do not leave float32's range.
    """

    def __init__(self, fitted: Moments, held_out: Moments, weight: torch.Tensor) -> None:
        channels = slice(None, None, -(-weight.shape[1] // JUDGED_CHANNELS))
        weight = weight[:, channels].double()
        self.unit = damping(fitted, 1.0)[..., None]
        self.fitted = fitted
        self.gram, self.other_gram = ((moments.gram / self.unit).float() for moments in (fitted, held_out))
        self.slope, self.other_slope = (
            ((moments.cross[:, channels] - weight @ moments.gram) / self.unit).float() for moments in (fitted, held_out)
        )
        self.try_ridge = cache(self._try_ridge)

    def error(self, number: int) -> float:
        """Of the ridge of this number with its best trust, the squared error above that of the float weight."""
        return self.try_ridge(number)[0]

    def prior(self, number: int) -> Prior:
        """The ridge of this number with its best trust."""
        return Prior(RIDGES[number], self.try_ridge(number)[1])

    def _try_ridge(self, number: int) -> tuple[float, float]:
        """Error and trust of a ridge; an infinite error where it is too weak for float32."""
        gram = self.gram.clone()
        gram.diagonal(dim1=1, dim2=2).add_((damping(self.fitted, RIDGES[number]) / self.unit[..., 0]).float())
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed.any():
            return torch.inf, 0.0
        change = torch.cholesky_solve(self.slope.mT, factor).mT
        power, gain = (
            float(((each * change).sum((1, 2), dtype=torch.float64) * self.unit.flatten()).sum())
            for each in (change @ self.other_gram, self.other_slope)
        )
        trust = min(max(gain / power, 0.0), 1.0) if power > 0 else 0.0
        return trust * trust * power - 2 * trust * gain, trust


def solve_real(moments: Moments, weight: torch.Tensor, prior: Prior) -> torch.Tensor:
    """The real-valued optimum ``W + trust ((C + r W) (A + r I)^-1 - W)`` (G, C, K), with r of ``damping``."""
    added = damping(moments, prior.ridge)
    gram = moments.gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(added)
    cross = moments.cross + added[..., None] * weight
    solution = torch.cholesky_solve(cross.mT, torch.linalg.cholesky(gram)).mT
    return weight + prior.trust * (solution - weight)


def damping(moments: Moments, ridge: float) -> torch.Tensor:
    """``ridge`` times the mean variance of a group's inputs, (G, 1), and always more than their moments' rounding.

    Inputs that hardly vary say nothing about their weights. Any positive damping lets these keep their float values.
    """
    variance = moments.gram.diagonal(dim1=1, dim2=2).mean(1)
    least = ROUNDING * moments.input_mean.square().mean(1) + torch.finfo(torch.float32).tiny
    return torch.maximum(ridge * variance, least)[:, None]
