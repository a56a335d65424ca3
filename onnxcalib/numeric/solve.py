"""Solve one linear layer for integers: least squares, scale search, lattice search, descent, closed-form bias.

With the input quantized to x and the float target y, min over integers q, scales s and bias b of
``E |y - s q x - b|^2`` is quadratic in the weights: least at W* = C A^-1 over the reals, which a Prior holds near the
float weights W, and ``tr((s q - W*) A (s q - W*)^T)`` above that (Hubara et al. 2021, eq. 2 and 3, V and the bias at
their optimum).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ..spec import QuantSpec
from .block import Blocks
from .gram import Moments
from .integer_search import descend, excess, factor, gptq, order_inputs, search, spread
from .rounding import quantize
from .saturation import keep_pairs, order_pairs, pair_sums

# Candidate weights of the float weights in the solution, in units of the mean input variance. A weak prior over-fits
# the noise of the quantized prefix, and few samples; which is best differs by layer, so that held-out samples choose.
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
# The same for the metric in which integers are chosen: only what its estimate from few samples needs.
DAMPING = 0.1
# Columns for each input at which what the model's outputs see has half the say in that metric.
HALF_SEEN = 2
# Square of float32's rounding, generously: the least variance that a mean of size 1 leaves to be seen.
ROUNDING = 1e-12
# Shares of the largest weight at which the scale grid ends, and how many are tried.
FEW_BIT_SHARES = torch.linspace(1.0, 0.4, 16, dtype=torch.float64)
EIGHT_BIT_SHARES = torch.linspace(1.0, 0.85, 4, dtype=torch.float64)
# Rows of candidates that are rounded at once may take so many bytes.
ROW_BYTES = 64 * 2**20
# Scales of each row that are searched in full.
SCALES = 3
REFITS = 2


@dataclass(frozen=True)
class Solution:
    """Integers (groups, C, K), scale (groups, C), or (groups, C, B) of B blocks, and bias (groups, C)."""

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


@dataclass(frozen=True)
class OutputMetric:
    """What the model's outputs see of a layer's input: the Gram matrix (1, K, K) of so many sums over places."""

    gram: torch.Tensor
    columns: int

    def blend(self, gram: torch.Tensor) -> torch.Tensor:
        """Both Gram matrices on the scale of the layer's own, this one with more of a say the more columns it is of."""
        trace, own = gram.diagonal(dim1=1, dim2=2).sum(), self.gram.diagonal(dim1=1, dim2=2).sum()
        if not own > 0:
            return gram
        share = self.columns / (self.columns + HALF_SEEN * gram.shape[1])
        return (1 - share) * gram + (share * trace / own) * self.gram


def solve_layer(
    moments: Moments,
    weight: torch.Tensor,
    spec: QuantSpec,
    *,
    prior: Prior,
    width: int = 1,
    seen: OutputMetric | None = None,
    summing: torch.Tensor | None = None,
) -> Solution:
    """Integers, scales and bias of one layer whose float weight is ``weight`` (groups, C, K).

    width: branches of the search for the integers (``lattice.search``). seen: with it, integers are chosen for what
    their error does to the model's outputs, not to the layer's own; their optimum stays the layer's own. summing (K,):
    the inputs in the order in which the kernel adds, of which a pair_limit speaks; None: as they are.
    """
    weight = weight.double()
    order = _order(moments.gram, spec, summing)
    optimum = _permute(_solve_real(moments, weight, prior), order)
    # What noise there is lies in the optimum: the metric of rounding needs no such prior.
    gram = moments.gram if seen is None else seen.blend(moments.gram)
    gram = _permute(_permute(gram, order).mT, order)
    gram.diagonal(dim1=1, dim2=2).add_(_damping(moments, min(prior.ridge, DAMPING)))
    blocks = None if spec.block is None else Blocks(order // spec.block)
    best = _round_optimum(gram, optimum, (spec, blocks), width)
    # Rounding the float weights is better on a few rows in a hundred, on up to twice the loss.
    plain = round_layer(weight, spec, summing=summing)
    plain_integers = _permute(plain.integers, order)
    best.take(excess(gram, optimum, plain_integers, _spread(plain.scale, blocks)), plain_integers, plain.scale)
    integers, scale = _permute(best.integers, order.argsort(1)), best.scale
    weights = _permute(best.integers * spread(_spread(scale, blocks)), order.argsort(1))
    bias = moments.target_mean - (weights @ moments.input_mean[..., None]).squeeze(-1)
    return Solution(integers, scale, bias)


def _order(gram: torch.Tensor, spec: QuantSpec, summing: torch.Tensor | None) -> torch.Tensor:
    """The order (groups, K) in which integers are chosen."""
    if spec.pair_limit is None:
        return order_inputs(gram)
    natural = torch.arange(gram.shape[1], device=gram.device)
    return order_pairs(gram.diagonal(dim1=1, dim2=2), natural if summing is None else summing)


def _spread(scale: torch.Tensor, blocks: Blocks | None) -> torch.Tensor:
    """The scale as ``lattice`` has it: of blocks, that of each input."""
    return scale if blocks is None else blocks.spread(scale)


def _permute(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """rows (groups, R, K) with the inputs in an order (groups, K)."""
    return rows.gather(2, order.unsqueeze(1).expand(rows.shape))


def _round_optimum(
    gram: torch.Tensor, optimum: torch.Tensor, grid: tuple[QuantSpec, Blocks | None], width: int
) -> _Best:
    """Integers and scales near the optimum, of so many output channels at once as ROW_BYTES have room for."""
    spec, blocks = grid
    upper = factor(gram)
    row = len(optimum) * optimum.shape[2] * optimum.element_size()
    parts = [
        _round_rows(gram, upper, rows, spec, width)
        if blocks is None
        else _round_blocks((gram, upper), rows, spec, blocks, width)
        for rows in optimum.split(max(1, ROW_BYTES // row), 1)
    ]
    best = _Best()
    best.take(*(torch.cat(each, 1) for each in zip(*parts, strict=True)))
    return best


def _round_rows(gram, upper, optimum, spec: QuantSpec, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, integers and scales of the rows ``optimum``: searched for at a few scales, then made better by turns."""
    scales = _choose_scales(upper, optimum, spec, SCALES if width > 1 else 1)
    rows, scale = optimum.repeat(1, len(scales), 1), torch.cat(list(scales), 1)
    integers = search(upper, rows, scale, spec, width=width)
    cross = (optimum @ gram).repeat(1, len(scales), 1)
    for _ in range(REFITS):
        integers = descend(gram, rows, integers, scale, spec)
        scale = _refit_scale(cross, gram, integers, scale)
    integers = descend(gram, rows, integers, scale, spec)
    best = _Best()
    found = (x.split(optimum.shape[1], 1) for x in (excess(gram, rows, integers, scale), integers, scale))
    for part in zip(*found, strict=True):
        best.take(*part)
    return best.loss, best.integers, best.scale


def _round_blocks(metric, optimum, spec: QuantSpec, blocks: Blocks, width: int):
    """As ``_round_rows`` with a scale for each block of inputs, all blocks of a row refitted at once.

    metric: the Gram matrix and its factor.
    """
    gram, upper = metric
    candidates = (
        torch.stack([share * blocks.largest(optimum) for share in _shares(spec).to(optimum.device)]) / spec.qmax
    )
    losses = [blocks.add(gptq(upper, optimum, blocks.spread(each), spec)[1]) for each in candidates]
    scale = candidates.gather(0, torch.stack(losses).argmin(0, keepdim=True))[0]
    integers = search(upper, optimum, blocks.spread(scale), spec, width=width)
    best = _Best()
    for _ in range(REFITS):
        integers = descend(gram, optimum, integers, blocks.spread(scale), spec)
        best.take(excess(gram, optimum, integers, blocks.spread(scale)), integers, scale)
        scale = blocks.refit(gram, optimum, integers, scale)
    integers = descend(gram, optimum, integers, blocks.spread(scale), spec)
    best.take(excess(gram, optimum, integers, blocks.spread(scale)), integers, scale)
    return best.loss, best.integers, best.scale


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


def round_layer(weight: torch.Tensor, spec: QuantSpec, *, summing: torch.Tensor | None = None) -> Solution:
    """The rounding of least squared weight error, for a layer (groups, C, K) whose input is not to be had; no bias.

    summing: as in ``solve_layer``.
    """
    weight = weight.double()
    if spec.block is not None:
        return _round_in_blocks(weight, spec)
    bound = summing is not None and spec.pair_limit is not None
    rows = weight[..., summing] if bound else weight
    best = _Best()
    for scale in _candidate_scales(rows, spec):
        integers = keep_pairs(quantize(rows, scale[..., None], 0, spec), spec.pair_limit)
        best.take((integers * scale[..., None] - rows).square().sum(2), integers, scale)
    integers = best.integers[..., summing.argsort()] if bound else best.integers
    return Solution(integers, best.scale, torch.zeros_like(best.scale))


def _round_in_blocks(weight: torch.Tensor, spec: QuantSpec) -> Solution:
    """``round_layer`` of every block by itself."""
    groups, rows, size = weight.shape
    padded = torch.nn.functional.pad(weight, (0, -size % spec.block))
    found = round_layer(padded.reshape(groups, -1, spec.block), replace(spec, block=None))
    integers = found.integers.reshape(padded.shape)[..., :size]
    return Solution(integers, found.scale.reshape(groups, rows, -1), torch.zeros_like(weight[..., 0]))


class _Best:
    """The candidate of least loss so far, by row: losses (groups, R), and integers and scale as a Solution's."""

    def __init__(self) -> None:
        self.loss = self.integers = self.scale = None

    def take(self, loss: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> None:
        if self.loss is None:
            self.loss, self.integers, self.scale = loss, integers, scale
            return
        better = loss < self.loss
        self.loss = torch.where(better, loss, self.loss)
        self.integers = torch.where(better[..., None], integers, self.integers)
        self.scale = torch.where(better if scale.dim() == 2 else better[..., None], scale, self.scale)


def _candidate_scales(optimum: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Scales (candidates, groups, C) whose grids end at shares of each channel's largest weight.

    With a pair_limit, where the largest pair's sum ends if that is farther out; inputs are in the order of the pairs.
    """
    least = optimum.abs().amax(2).clamp_min(torch.finfo(torch.float32).tiny * spec.qmax) / spec.qmax
    if spec.pair_limit is not None:
        least = torch.maximum(least, pair_sums(optimum).amax(2) / spec.pair_limit)
    return _shares(spec).to(least.device)[:, None, None] * least


def _shares(spec: QuantSpec) -> torch.Tensor:
    return EIGHT_BIT_SHARES if spec.bits == 8 else FEW_BIT_SHARES


def _choose_scales(upper: torch.Tensor, optimum: torch.Tensor, spec: QuantSpec, count: int) -> torch.Tensor:
    """The ``count`` scales (count, groups, C) whose GPTQ rounding has the least loss, by output channel."""
    candidates = _candidate_scales(optimum, spec)
    losses = []
    for part in candidates.split(max(1, ROW_BYTES // (optimum.numel() * optimum.element_size()))):
        scales = torch.cat(list(part), 1)
        losses += gptq(upper, optimum.repeat(1, len(part), 1), scales, spec)[1].split(optimum.shape[1], 1)
    return candidates.gather(0, torch.stack(losses).topk(count, dim=0, largest=False).indices)


def _refit_scale(cross, gram, integers, scale):
    """The best scale for given integers, ``s = q C^T / q A q^T``; kept as it was where that is not positive."""
    along = (integers * cross).sum(2)
    power = ((integers @ gram) * integers).sum(2)
    fitted = along / power.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where((fitted > 0) & (power > 0), fitted, scale)
