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
# Columns after which the rest of the matrix hears of their changes, as one matrix product.
LAZY = 64


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
    scale, integers = _search_scale(gram, upper, optimum, spec)
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


def _search_scale(gram, upper, optimum, spec: QuantSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale whose GPTQ rounding has the least loss, by output channel, and that rounding."""
    candidates = _candidate_scales(optimum, spec)
    together = max(1, ROW_BYTES // (optimum.numel() * optimum.element_size()))
    best = _Best()
    for part in candidates.split(together):
        rows = optimum.repeat(1, len(part), 1)
        scales = part.movedim(0, 1).reshape(len(rows), -1)
        integers = gptq(upper, rows, scales, spec)
        losses = excess(gram, rows, integers, scales)
        for number in range(len(part)):
            own = slice(number * optimum.shape[1], (number + 1) * optimum.shape[1])
            best.take(losses[:, own], integers[:, own], scales[:, own])
    return best.scale, best.integers


def excess(gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Loss above the continuous optimum, ``d A d^T`` with ``d = s q - W*``, by group and row (groups, R)."""
    difference = integers * scale[..., None] - optimum
    return ((difference @ gram) * difference).sum(2)


def gptq(upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Round column after column, each time moving the columns to come to make up for the error (Frantar et al. 2023).

    upper (groups, K, K): upper Cholesky factor of the Gram matrix's inverse; rows (groups, R, K); scale (groups, R).
    """
    work, integers = rows.clone(), torch.empty_like(rows)
    size = rows.shape[2]
    for start in range(0, size, LAZY):
        end = min(start + LAZY, size)
        errors = torch.empty_like(work[:, :, start:end])
        for j in range(start, end):
            integers[:, :, j] = quantize(work[:, :, j], scale, 0, spec)
            error = (work[:, :, j] - integers[:, :, j] * scale) / upper[:, None, j, j]
            work[:, :, j + 1 : end] -= error[..., None] * upper[:, None, j, j + 1 : end]
            errors[:, :, j - start] = error
        work[:, :, end:] -= errors @ upper[:, start:end, end:]
    return integers


def descend(gram, optimum, integers, scale, spec: QuantSpec) -> torch.Tensor:
    """Coordinate descent on the integers until no single change of one of them lowers the loss, or SWEEPS are done."""
    integers = integers.clone()
    gradient = (integers * scale[..., None] - optimum) @ gram
    curvature = gram.diagonal(dim1=1, dim2=2)
    size = integers.shape[2]
    for _ in range(SWEEPS):
        changed = False
        for start in range(0, size, LAZY):
            end = min(start + LAZY, size)
            near, before = gradient[:, :, start:end].clone(), integers[:, :, start:end].clone()
            for j in range(start, end):
                target = integers[:, :, j] * scale - near[:, :, j - start] / curvature[:, None, j]
                new = quantize(target, scale, 0, spec)
                near += ((new - integers[:, :, j]) * scale)[..., None] * gram[:, None, j, start:end]
                integers[:, :, j] = new
            moved = (integers[:, :, start:end] - before) * scale[..., None]
            if moved.any():
                gradient += moved @ gram[:, start:end]
                changed = True
        if not changed:
            break
    return integers


def _refit_scale(cross, gram, integers, scale):
    """The best scale for given integers, ``s = q C^T / q A q^T``; kept as it was where that is not positive."""
    along = (integers * cross).sum(2)
    power = ((integers @ gram) * integers).sum(2)
    fitted = along / power.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((fitted > 0) & (power > 0), fitted, scale)
