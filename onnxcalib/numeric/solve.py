"""Solve one linear layer for integers: least squares, scale search, GPTQ, coordinate descent, closed-form bias.

With the input quantized to x and the float target y, min over integers q, scales s and bias b of
``E |y - s q x - b|^2`` is quadratic in the weights: least at W* = C A^-1 over the reals, which a Prior holds near the
float weights W, and ``tr((s q - W*) A (s q - W*)^T)`` above that (Hubara et al. 2021, eq. 2 and 3, V and the bias at
their optimum).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..spec import QuantSpec
from .gram import Moments
from .rounding import quantize

# Candidate weights of the float weights in the solution, in units of the mean input variance. A weak prior over-fits
# the noise of the quantized prefix, and few samples; which is best differs by layer, so that held-out samples choose.
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# The same for the metric in which integers are chosen: only what its estimate from few samples needs.
DAMPING = 0.1
# Square of float32's rounding, generously: the least variance that a mean of size 1 leaves to be seen.
ROUNDING = 1e-12
# Shares of the largest weight at which the scale grid ends, and how many are tried.
FEW_BIT_SHARES = torch.linspace(1.0, 0.4, 16, dtype=torch.float64)
EIGHT_BIT_SHARES = torch.linspace(1.0, 0.85, 4, dtype=torch.float64)
# Rows of candidates that are rounded at once may take so many bytes.
ROW_BYTES = 64 * 2**20
SWEEPS = 6
REFITS = 2
# Inputs after which the rest of the matrix hears of their moves, as one matrix product.
LAZY = 32


@dataclass(frozen=True)
class Solution:
    """Integers (groups, C, K), scale (groups, C) and bias (groups, C)."""

    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor

    def cpu(self) -> Solution:
        """The same in the memory that NumPy reads."""
        return Solution(self.integers.cpu(), self.scale.cpu(), self.bias.cpu())


@dataclass(frozen=True)
class Prior:
    """How far the float weights W hold against the least squares, in which the prefix's error makes noise too.

    The solution is ``W + trust (W_r - W)``: ridge, in units of the mean input variance, pulls W_r to W where inputs
    vary little; trust, 0 to 1, shrinks what is left of the change, where inputs vary much as well.
    """

    ridge: float = 0.3
    trust: float = 1.0


def solve_layer(moments: Moments, weight: torch.Tensor, spec: QuantSpec, *, prior: Prior) -> Solution:
    """Integers, scales and bias of one layer whose float weight is ``weight`` (groups, C, K)."""
    optimum = _solve_real(moments, weight.double(), prior)
    # What noise there is lies in the optimum: the metric of rounding needs no such prior.
    gram = moments.gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(_damping(moments, min(prior.ridge, DAMPING)))
    cross = optimum @ gram
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram))).mT.contiguous()
    scale, integers = _search_scale(upper, optimum, spec)
    del upper
    for _ in range(REFITS):
        integers = descend(gram, optimum, integers, scale, spec)
        scale = _refit_scale(cross, gram, integers, scale)
    integers = descend(gram, optimum, integers, scale, spec)
    best = _Best()
    best.take(excess(gram, optimum, integers, scale), integers, scale)
    # Rounding the float weights is better on a few rows in a hundred, on up to twice the loss.
    plain = round_layer(weight, spec)
    best.take(excess(gram, optimum, plain.integers, plain.scale), plain.integers, plain.scale)
    integers, scale = best.integers, best.scale
    bias = moments.target_mean - ((integers * scale[..., None]) @ moments.input_mean[..., None]).squeeze(-1)
    return Solution(integers, scale, bias)


def choose_prior(learned: Moments, judged: Moments, weight: torch.Tensor) -> Prior:
    """The prior whose real-valued solution on ``learned`` has the least squared error on ``judged``.

    For each ridge the best trust is known in closed form: with D = W_r - W the error of ``W + t D`` is quadratic in t.
    """
    weight = weight.double()
    slack = judged.cross - weight @ judged.gram
    found: dict[Prior, float] = {}
    for ridge in RIDGES:
        change = _solve_real(learned, weight, Prior(ridge)) - weight
        power, gain = float(((change @ judged.gram) * change).sum()), float((change * slack).sum())
        trust = min(max(gain / power, 0.0), 1.0) if power > 0 else 0.0
        found[Prior(ridge, trust)] = trust * trust * power - 2 * trust * gain
    return min(found, key=found.get)


def _solve_real(moments: Moments, weight: torch.Tensor, prior: Prior) -> torch.Tensor:
    """``W + trust ((C + r W) (A + r I)^-1 - W)``, r being the ridge's damping."""
    damping = _damping(moments, prior.ridge)
    gram = moments.gram.clone()
    gram.diagonal(dim1=1, dim2=2).add_(damping)
    cross = moments.cross + damping[..., None] * weight
    solution = torch.cholesky_solve(cross.mT, torch.linalg.cholesky(gram)).mT
    return weight + prior.trust * (solution - weight)


def _damping(moments: Moments, ridge: float) -> torch.Tensor:
    """``ridge`` times the mean variance of a group's inputs (groups, 1).

    Inputs that hardly vary leave nothing to solve: it stays above the rounding of their moments, and any positive one
    keeps their float weights.
    """
    variance = moments.gram.diagonal(dim1=1, dim2=2).mean(1)
    least = ROUNDING * moments.input_mean.square().mean(1) + torch.finfo(torch.float32).tiny
    return torch.maximum(ridge * variance, least)[:, None]


def round_layer(weight: torch.Tensor, spec: QuantSpec) -> Solution:
    """The rounding of least squared weight error, for a layer (groups, C, K) whose input is not to be had; no bias."""
    weight = weight.double()
    best = _Best()
    for scale in _candidate_scales(weight, spec):
        integers = quantize(weight, scale[..., None], 0, spec)
        best.take((integers * scale[..., None] - weight).square().sum(2), integers, scale)
    return Solution(best.integers, best.scale, torch.zeros_like(best.scale))


class _Best:
    """The candidate of least loss so far, by row: losses and scale (groups, R), integers (groups, R, K)."""

    def __init__(self) -> None:
        self.loss = self.integers = self.scale = None

    def take(self, loss: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> None:
        if self.loss is None:
            self.loss, self.integers, self.scale = loss, integers, scale
            return
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.integers = torch.where(better[..., None], integers, self.integers)
        self.scale = torch.where(better, scale, self.scale)


def _candidate_scales(optimum: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Scales (candidates, groups, C) whose grids end at shares of each channel's largest weight."""
    shares = EIGHT_BIT_SHARES if spec.bits == 8 else FEW_BIT_SHARES
    largest = optimum.abs().amax(2).clamp_min(torch.finfo(torch.float32).tiny * spec.qmax)
    return shares.to(largest.device)[:, None, None] * largest / spec.qmax


def _search_scale(upper, optimum, spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale whose GPTQ rounding has the least loss, by output channel, and that rounding."""
    candidates = _candidate_scales(optimum, spec)
    together = max(1, ROW_BYTES // (optimum.numel() * optimum.element_size()))
    best = _Best()
    for part in candidates.split(together):
        rows = optimum.repeat(1, len(part), 1)
        scales = part.movedim(0, 1).reshape(len(rows), -1)
        integers, losses = gptq(upper, rows, scales, spec)
        for number in range(len(part)):
            own = slice(number * optimum.shape[1], (number + 1) * optimum.shape[1])
            best.take(losses[:, own], integers[:, own], scales[:, own])
    return best.scale, best.integers


def excess(gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Loss above the continuous optimum, ``d A d^T`` with ``d = s q - W*``, by group and row (groups, R)."""
    difference = integers * scale[..., None] - optimum
    return ((difference @ gram) * difference).sum(2)


def gptq(upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec):
    """Round input after input, each time moving those to come to make up for the error (Frantar et al. 2023).

    upper U (groups, K, K): upper Cholesky factor of the Gram matrix's inverse; rows W* (groups, R, K); scale (groups,
    R). Gives integers (groups, R, K), and ``excess`` of them: the sum of ``(s (q_j - w_j) / U_jj)^2``, w_j being the
    weight as it was when its turn came.
    """
    wish = (rows / scale[..., None]).mT.contiguous()
    integers, loss = torch.empty_like(wish), torch.zeros_like(scale)
    diagonal = upper.diagonal(dim1=1, dim2=2).unsqueeze(2)
    for own in _blocks(wish.shape[1]):
        rates = upper[:, own] / diagonal[:, own]
        integers[:, own], moved = _round_in_turn(wish[:, own], rates[:, :, own], spec)
        wish[:, own.stop :].baddbmm_(rates[:, :, own.stop :].mT, moved)
        loss += (moved / diagonal[:, own]).square_().sum(1)
    return integers.mT, loss * scale.square()


def descend(gram, optimum, integers, scale, spec: QuantSpec) -> torch.Tensor:
    """Coordinate descent on the integers until no single change of one of them lowers the loss, or SWEEPS are done.

    With A the Gram matrix, the loss along q_j is least at its wish ``q_j - ((q - W* / s) A)_j / A_jj``, which a change
    of q_k by d moves by ``-d A_kj / A_jj``.
    """
    curvature = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    wish = (integers - (integers - optimum / scale[..., None]) @ gram / curvature).mT.contiguous()
    integers = integers.mT.contiguous()
    for _ in range(SWEEPS):
        changed = False
        for own in _blocks(wish.shape[1]):
            rates = gram[:, own] / -curvature
            rates[:, :, own].diagonal(dim1=1, dim2=2).zero_()
            integers[:, own], moved = _round_in_turn(wish[:, own], rates[:, :, own], spec, integers[:, own])
            if moved.any():
                wish.baddbmm_(rates.mT, moved)
                changed = True
        if not changed:
            break
    return integers.mT


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + LAZY, size)) for start in range(0, size, LAZY)]


def _round_in_turn(wish, rates, spec: QuantSpec, before=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of a few inputs, each the nearest to its wish, and their moves: from ``before``, else from the wish.

    Each move changes the wishes of the others: that of k by rates (groups, B, B) [j, k] times the move of j. Integers,
    moves and wishes are (groups, B, R), in units of the scale. Operators in place, as all that is slow is their number.
    """
    near, integers, moved = wish.clone(), torch.empty_like(wish), torch.empty_like(wish)
    turns = (x.unsqueeze(2).unbind(1) for x in (near, near if before is None else before, integers, moved))
    for near_j, before_j, integer_j, moved_j, rates_j in zip(*turns, rates.unsqueeze(3).unbind(1), strict=True):
        torch.round(near_j, out=integer_j).clamp_(spec.qmin, spec.qmax)
        torch.sub(integer_j, before_j, out=moved_j)
        near.addcmul_(moved_j, rates_j)
    return integers, moved


def _refit_scale(cross, gram, integers, scale):
    """The best scale for given integers, ``s = q C^T / q A q^T``; kept as it was where that is not positive."""
    along = (integers * cross).sum(2)
    power = ((integers @ gram) * integers).sum(2)
    fitted = along / power.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((fitted > 0) & (power > 0), fitted, scale)
