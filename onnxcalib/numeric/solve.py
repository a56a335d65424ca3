"""Solve one linear layer for its integers, scales and bias on the moments of its input and target.

The layer reads the quantized input x, and y is the output of the float layer. The integers q, scales s and bias b are
to minimise ``E |y - s q x - b|^2`` (Hubara et al. 2021, eq. 2; where x comes from quantized layers, eq. 3). With A the
covariance of x and C the covariance of y with x, the best bias leaves

    tr((s q - W*) A (s q - W*)^T) + constant,    W* = C A^-1

W* is the real-valued optimum, which a ``Prior`` pulls towards the float weight W. ``solve_layer`` finds it by least
squares, searches for scales, searches for integers near W* (``integer_search``), refits scales and integers in turn,
and computes the bias in closed form. ``round_layer`` rounds W itself, for layers without moments.

Where a spec has no axis, all rows have one scale: rows then choose and refit it together, by the sum of their losses.
Scales that are powers of two are not refitted: integers are searched at several of them.

Shapes: G groups, C output channels and K inputs a group, R rows, N scale blocks a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import NamedTuple

import torch

from ..spec import QuantSpec
from .added_errors import AddedErrors, measure_added
from .descent import Descent
from .gram import Moments, divide
from .integer_search import Metric, excess_loss, expand_scale, gptq, order_inputs, search
from .output_metric import OutputMetric
from .pairs import keep_pairs, order_pairs
from .prior import Equations, Prior
from .rounding import quantize
from .row_grids import RowGrids, list_grids, measure_rounding
from .scale_blocks import ScaleBlocks
from .solve_blocks import round_blocks, solve_blocks

# Most ridge of the metric in which integers are chosen, in the same units, unless ``damping`` asks for more: it only
# steadies an estimate from few samples.
DAMPING = 0.1
# Rows of candidates that are rounded at once may take so many bytes.
ROW_BYTES = 16 * 2**20
# Bytes of a weight in float64 that are rounded at once, of which rounding has some ten copies: these stay in the
# processor's cache, which takes a third of the time of 2^24.
ROUND_BYTES = 2**19
# Bytes in float64 of the channels that are copied out of a transposed weight at once: a few cache lines of each row.
STRIP_BYTES = 2**24
# Scales of each row that GPTQ is tried at, and how many of these descent starts from. With 4 and 2 the loss is 0.7%
# more in layers of ResNet-20 and MiniLM-L6, and the time a tenth less.
PROMISING, STARTS = 6, 3
# Scales that rows of 3 and 2 bits are fitted at again, as shares of those that they were fitted to, and how often.
NEAR, ROUNDS = (0.93, 0.97, 1.0, 1.03, 1.07), 2
# Most passes of coordinate descent over the inputs; scales are refitted behind each.
SWEEPS = 4
# Inputs for each branch up to which the K-best search is worth its time. In ResNet-20 eight branches lower the loss by
# 16% with 144 inputs, by 7% with 288, and by nothing with 576.
INPUTS_PER_BRANCH = 40


@dataclass(frozen=True)
class Solution:
    """Integers (G, C, K), scale (G, C), or (G, C, N) with scale blocks, and bias (G, C) of a layer.

    zero: zero points in the shape of the scale; None where all are 0. added: where that was measured.
    """

    integers: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    zero: torch.Tensor | None = None
    added: AddedErrors | None = None

    @property
    def levels(self) -> torch.Tensor:
        """Integers (G, C, K) less their zero points, without scale blocks."""
        return self.integers if self.zero is None else self.integers - self.zero[..., None]

    @property
    def weights(self) -> torch.Tensor:
        """The weights (G, C, K) that the integers stand for, without scale blocks."""
        return self.levels * self.scale[..., None]

    def regroup(self, groups: int, channels: int) -> Solution:
        """The same channels, in this order, as those of so many groups."""
        integers, scale, bias = (
            each.reshape(groups, channels, *each.shape[2:]) for each in (self.integers, self.scale, self.bias)
        )
        zero = None if self.zero is None else self.zero.reshape(scale.shape)
        added = None if self.added is None else self.added.regroup(groups, channels)
        return Solution(integers, scale, bias, zero, added)

    def cpu(self) -> Solution:
        """The same in the memory that NumPy reads."""
        zero = None if self.zero is None else self.zero.cpu()
        added = None if self.added is None else self.added.cpu()
        return Solution(self.integers.cpu(), self.scale.cpu(), self.bias.cpu(), zero, added)

    def take(self, channels: slice) -> Solution:
        """The solution of some of the channels."""
        zero = None if self.zero is None else self.zero[:, channels]
        added = None if self.added is None else self.added.take(channels)
        return Solution(self.integers[:, channels], self.scale[:, channels], self.bias[:, channels], zero, added)

    @classmethod
    def join(cls, parts: Sequence[Solution]) -> Solution:
        """The solution of the channels of all parts."""
        zeros = [part.zero for part in parts if part.zero is not None]
        integers, scale, bias = (
            torch.cat([getattr(part, name) for part in parts], 1) for name in ("integers", "scale", "bias")
        )
        added = [part.added for part in parts if part.added is not None]
        return cls(
            integers, scale, bias, torch.cat(zeros, 1) if zeros else None, AddedErrors.join(added) if added else None
        )


def solve_layer(
    moments: Moments,
    weight: torch.Tensor,
    spec: QuantSpec,
    *,
    prior: Prior,
    damping: float = 0.0,
    width: int = 1,
    output_metric: OutputMetric | None = None,
    summing: torch.Tensor | None = None,
    with_added: bool = False,
) -> Solution:
    """Integers, scales and bias of one layer whose float weight is ``weight`` (G, C, K).

    damping: least ridge of the metric in which integers are chosen, in the prior's units. width: branches of the K-best
    search. output_metric: integers are chosen for the least error of the model's outputs instead of the layer's; the
    optimum W* stays that of the layer. summing (K,): the inputs in the order in which the kernel sums their products,
    which makes the pairs of a pair_limit; None: as they are. with_added: what integers add to the layer's error, too.
    """
    weight, equations = weight.double(), Equations.of(moments, weight)
    order = _rounding_order(moments.gram, spec, summing)
    # The prior's ridge is for noise in the optimum; the metric has none.
    ridge = max(min(prior.ridge, DAMPING), damping)
    gram = equations.gram if output_metric is None else output_metric.blend(equations.gram)
    gram = _permute(gram[torch.arange(len(gram), device=gram.device)[:, None], order], order)
    gram.diagonal(dim1=1, dim2=2).add_(equations.least.clamp_min(ridge))
    metric = Metric.of(gram, equations.unit)
    if output_metric is None and prior.ridge == ridge:
        change = divide(_permute(equations.slope, order), metric.upper, upper=True)
        change *= (equations.unit / metric.power)[..., None]
    else:
        change = _permute(equations.solve(prior.ridge), order)
    optimum = _permute(weight, order) + prior.trust * change
    blocks = _find_blocks(order, spec)
    best = _round_optimum(metric, optimum, (spec, blocks), width)
    improves = blocks is None and not _is_fine(spec)
    plain = round_layer(weight, spec, summing=summing) if improves or with_added else None
    # In a few rows of a hundred the rounded float weights are better, by up to half the loss.
    if improves and plain is not None:
        levels = _permute(plain.levels, order)
        loss = excess_loss(metric.gram.double(), optimum, levels, plain.scale) * metric.power
        best = best.improve(_Rounded(_pool(loss, spec), levels, plain.scale, plain.zero))
    natural = order.argsort(1)
    weights = _permute(best.integers * expand_scale(_expand_blocks(best.scale, blocks)), natural)
    bias = moments.means_of_targets(weight) - (weights @ moments.input_mean[..., None]).squeeze(-1)
    added = None
    if with_added and plain is not None:
        added = measure_added(equations, weight, _dequantize(plain, spec), weights)
    found = Solution(_permute(best.integers, natural), best.scale, bias, best.zero, added)
    return _count_all(found, None if blocks is None else _find_blocks(_natural_order(weight), spec), spec)


def _dequantize(found: Solution, spec: QuantSpec) -> torch.Tensor:
    """The weight (G, C, K) of a solution as it is stored."""
    if spec.block is None:
        return found.levels * found.scale[..., None]
    blocks = ScaleBlocks(_natural_order(found.integers) // spec.block)
    zero = 0 if found.zero is None else blocks.expand(found.zero)
    return (found.integers - zero) * blocks.expand(found.scale)


def _rounding_order(gram: torch.Tensor, spec: QuantSpec, summing: torch.Tensor | None) -> torch.Tensor:
    """The order (G, K) in which the search rounds inputs; pairs stay together under a pair_limit."""
    if spec.pair_limit is None:
        return order_inputs(gram)
    natural = torch.arange(gram.shape[1], device=gram.device)
    return order_pairs(gram.diagonal(dim1=1, dim2=2), natural if summing is None else summing)


def _find_blocks(order: torch.Tensor, spec: QuantSpec) -> ScaleBlocks | None:
    """The blocks of inputs in this order (G, K); None for rows that have one scale and no zero point."""
    if spec.block is None and spec.symmetric:
        return None
    return ScaleBlocks(torch.zeros_like(order) if spec.block is None else order // spec.block)


def _natural_order(weight: torch.Tensor) -> torch.Tensor:
    return torch.arange(weight.shape[2], device=weight.device).expand(weight.shape[0], -1)


def _count_all(found: Solution, blocks: ScaleBlocks | None, spec: QuantSpec) -> Solution:
    """A solution whose integers were counted from their zero points, as it is stored."""
    integers, scale, zero = found.integers, found.scale, found.zero
    if zero is not None:
        integers = integers + (zero[..., None] if blocks is None else blocks.expand(zero))
    if blocks is not None and spec.block is None:
        scale, zero = scale.squeeze(2), None if zero is None else zero.squeeze(2)
    return replace(found, integers=integers, scale=scale, zero=zero)


def _expand_blocks(scale: torch.Tensor, blocks: ScaleBlocks | None) -> torch.Tensor:
    """The scale as ``integer_search`` takes it: scales of blocks as scales of their inputs, (G, R, K)."""
    return scale if blocks is None else blocks.expand(scale)


def _permute(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """rows (G, R, K) with the inputs in the order (G, K)."""
    return rows.gather(2, order.unsqueeze(1).expand(rows.shape))


def _pool(sums: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Sums (G, R) of rows with scales of their own; where all have one scale, the sum over all of them for each."""
    return sums if spec.axis is not None else sums.sum().expand(sums.shape)


class _Rounded(NamedTuple):
    """A candidate for each row: losses (G, R) as ``_pool`` has them, and integers and scale as a Solution has them.

    zero: in the shape of the scale. Integers are less their zero points.
    """

    loss: torch.Tensor
    integers: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None

    def improve(self, other: _Rounded) -> _Rounded:
        """This candidate with the rows replaced in which the other's loss is less."""
        better = other.loss < self.loss
        return _Rounded(
            torch.where(better, other.loss, self.loss),
            torch.where(better[..., None], other.integers, self.integers),
            torch.where(better, other.scale, self.scale),
            None if self.zero is None or other.zero is None else torch.where(better, other.zero, self.zero),
        )


def _choose_best(candidates: Iterable[_Rounded]) -> _Rounded:
    """The candidate of least loss, row by row; the first of equals."""
    return reduce(_Rounded.improve, candidates)


def _round_optimum(
    metric: Metric, optimum: torch.Tensor, grid: tuple[QuantSpec, ScaleBlocks | None], width: int
) -> _Rounded:
    """Integers and scales near the optimum, for as many output channels at once as ROW_BYTES have room for.

    Rows of one scale are rounded together.
    """
    spec, blocks = grid
    row_bytes = optimum.shape[2] * metric.gram.element_size()
    if blocks is not None:
        row_bytes = max(row_bytes, blocks.count**2 * optimum.element_size())
    at_once = max(1, ROW_BYTES // (len(optimum) * row_bytes))
    parts = [
        _round_rows(metric, rows, spec, width) if blocks is None else _round_blocks(metric, rows, spec, blocks, width)
        for rows in optimum.split(at_once if spec.axis is not None else optimum.shape[1], 1)
    ]
    loss, integers, scale = (torch.cat(each, 1) for each in zip(*(part[:3] for part in parts), strict=True))
    zeros = [part.zero for part in parts if part.zero is not None]
    return _Rounded(loss, integers, scale, torch.cat(zeros, 1) if zeros else None)


def _round_blocks(metric: Metric, optimum: torch.Tensor, spec: QuantSpec, blocks: ScaleBlocks, width: int) -> _Rounded:
    found = solve_blocks(metric, optimum, spec, blocks, _branches(optimum, width))
    return _Rounded(found.loss, found.integers, *found.grids)


def _round_rows(metric: Metric, optimum: torch.Tensor, spec: QuantSpec, width: int) -> _Rounded:
    """Round rows that have one scale each, or one together: start at a few grids, then refit integers and scale."""
    candidates = list_grids(optimum, spec)
    if _is_fine(spec):
        integers, loss = gptq(metric, optimum, candidates.scale[0], spec)
        return _Rounded(loss, integers.double(), candidates.scale[0])
    best = _fit(metric, optimum, _choose_promising(metric, optimum, candidates, spec), spec, width)
    for _ in range(ROUNDS if spec.bits < 4 and not spec.power_of_two else 0):
        near = torch.tensor(NEAR).to(best.scale)[:, None, None] * best.scale
        zero = None if best.zero is None else best.zero.expand_as(near)
        best = best.improve(_fit(metric, optimum, RowGrids(near, zero), spec, width))
    return best


def _fit(metric: Metric, optimum: torch.Tensor, starts: RowGrids, spec: QuantSpec, width: int) -> _Rounded:
    """Integers and scales of least loss from any of these grids (starts, G, R) on."""
    # The grids make copies of the rows, one behind the other.
    scale, rows = starts.scale.transpose(0, 1).flatten(1, 2), optimum.shape[1]
    zero = None if starts.zero is None else starts.zero.transpose(0, 1).flatten(1, 2)
    integers, loss = gptq(metric, optimum.repeat(1, len(starts.scale), 1), scale, spec, _widen(zero, optimum))
    best = torch.stack([_pool(each, spec) for each in loss.split(rows, 1)]).argsort(dim=0, stable=True)[:STARTS]
    scale, integers = _pick(scale, best), _pick(integers, best)
    zero = None if zero is None else _pick(zero, best)
    copies, branches, points = optimum.repeat(1, len(best), 1), _branches(optimum, width), _widen(zero, optimum)
    if branches > 1:
        integers = search(metric, copies, scale, spec, width=branches, zero=points)
    descent = Descent(metric, copies, integers, scale, spec, zero=points)
    descent.sweep()
    descent.keep_best(torch.stack([_pool(each, spec) for each in descent.loss().split(rows, 1)]))
    if not spec.power_of_two:
        descent.refit(together=spec.axis is None)
    for _ in range(SWEEPS - 1):
        if not descent.sweep():
            break
        if not spec.power_of_two:
            descent.refit(together=spec.axis is None)
    zero = None if descent.zero is None else descent.zero[:, 0].to(optimum)
    return _Rounded(_pool(descent.loss(), spec), descent.integers().double(), descent.unit, zero)


def _widen(zero: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor | None:
    """Zero points (G, R) of rows, one for each of their inputs."""
    return None if zero is None else zero[..., None].expand(-1, -1, rows.shape[2])


def _branches(optimum: torch.Tensor, width: int) -> int:
    """Branches of the search for these rows: one where they have too many inputs for the K-best search."""
    return width if optimum.shape[2] <= INPUTS_PER_BRANCH * width else 1


def _pick(values: torch.Tensor, copies: torch.Tensor) -> torch.Tensor:
    """Of values (G, P R, ...) of P copies of the rows those of the ``copies`` (S, G, R), as (G, S R, ...)."""
    index = copies.transpose(0, 1).reshape(*copies.shape[1::-1], -1, *[1] * (values.dim() - 2))
    parts: torch.Tensor = values.unflatten(1, (-1, copies.shape[2]))
    return parts.gather(1, index.expand(-1, -1, -1, *values.shape[2:])).flatten(1, 2)


def _choose_promising(metric: Metric, optimum: torch.Tensor, candidates: RowGrids, spec: QuantSpec) -> RowGrids:
    """Of the candidates for each row the few at which GPTQ promises the least loss.

    The loss is a sum over the inputs, ``((s q_j - v_j) N_jj)^2``. Here each v_j is w*_j, and not yet compensated.
    """
    losses = measure_rounding(optimum, candidates, spec, metric.upper.diagonal(dim1=1, dim2=2).unsqueeze(1))
    losses = torch.stack([_pool(each * metric.power, spec) for each in losses])
    return candidates.take(losses.argsort(dim=0, stable=True)[:PROMISING])


def _is_fine(spec: QuantSpec) -> bool:
    """Whether GPTQ at the scale at which nothing is clipped is all that integers need.

    With 8 bits and a scale a row the error of weights is far below that of activations. Other scales, refits, descent
    and rounded float weights took half of a run, and moved the outputs of networks by less than other seeds do.
    """
    return spec.bits == 8 and spec.axis is not None and not spec.power_of_two


def round_layer(weight: torch.Tensor, spec: QuantSpec, *, summing: torch.Tensor | None = None) -> Solution:
    """Round the float weight (G, C, K) with the least squared weight error ``|s q - W|^2``; the bias is zero.

    For layers whose input cannot be had. The integers are int8, and lie in memory in the order of the weight, which may
    be a transposed view. summing: as in ``solve_layer``.
    """
    integers = torch.empty_like(weight, dtype=torch.int8)
    strip = weight.shape[1] if spec.axis is None else _fit_rows(weight, STRIP_BYTES)
    parts = []
    for rows, into in zip(weight.split(strip, 1), integers.split(strip, 1), strict=True):
        found = _round_strip(rows.contiguous(), spec, summing)
        into.copy_(found.integers)
        parts.append(replace(found, integers=found.integers[..., :0], bias=found.bias.to(torch.float64)))
    return replace(Solution.join(parts), integers=integers)


def _fit_rows(weight: torch.Tensor, size: int) -> int:
    """How many output channels (G, C, K) have so many bytes in float64; at least one."""
    return max(1, size // (8 * weight.shape[0] * weight.shape[2]))


def _round_strip(weight: torch.Tensor, spec: QuantSpec, summing: torch.Tensor | None) -> Solution:
    """``round_layer`` of rows that lie one behind the other in memory, a few at a time."""
    at_once = weight.shape[1] if spec.axis is None else _fit_rows(weight, ROUND_BYTES)
    return Solution.join([_round_few(rows.double(), spec, summing) for rows in weight.split(at_once, 1)])


def _round_few(weight: torch.Tensor, spec: QuantSpec, summing: torch.Tensor | None) -> Solution:
    blocks = _find_blocks(_natural_order(weight), spec)
    if blocks is not None:
        integers, grids = round_blocks(weight, spec, blocks)
        found = Solution(integers, grids.scale, torch.zeros_like(weight[..., 0]), grids.zero)
        found = _count_all(found, blocks, spec)
        return replace(found, integers=found.integers.to(torch.int8))
    # Pairs are neighbours in the order in which the kernel sums.
    order = summing if spec.pair_limit is not None else None
    rows = weight if order is None else weight[..., order]
    candidates = list_grids(rows, spec)
    losses = torch.stack([_pool(each, spec) for each in measure_rounding(rows, candidates, spec)])
    scale, zero = (None if each is None else each[0] for each in candidates.take(losses.argmin(0, keepdim=True)))
    assert scale is not None
    if zero is None:
        integers = keep_pairs(quantize(rows, scale[..., None], 0, spec), spec.pair_limit).to(torch.int8)
    else:
        integers = (rows / scale[..., None] + zero[..., None]).round_().clamp_(spec.qmin, spec.qmax).to(torch.int8)
    integers = integers if order is None else integers[..., order.argsort()]
    return Solution(integers, scale, torch.zeros_like(scale), zero)
