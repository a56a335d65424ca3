"""Find a layer's integers one input after the other: GPTQ, and the K-best search.

The loss of a row of integers q is ``(s q - w*) A (s q - w*)^T``. A is the Gram matrix of the layer's inputs (GPTQ's
Hessian), w* the real-valued row of least loss, s the scale.

With N upper triangular and ``A = N N^T``, and errors ``e = s q - w*``, the loss is ``|e N|^2``, a sum over the
inputs in which that of input j depends on the errors of inputs 0 to j alone:

    sum_j ((s q_j - v_j) N_jj)^2    with v_j = w*_j - sum_{k < j} e_k N_kj / N_jj

v_j is the compensated weight of input j: GPTQ (Frantar et al. 2023) rounds the inputs one after the other, each to the
integer nearest to it. Every choice of integers is a path in a tree with one input a level.

``gptq`` follows one path. ``search`` is the K-best search, a beam search by breadth: of all paths that were extended by
one input, the ``width`` of least loss go on. It decides after every WINDOW inputs: the best path alone enters the next
window, so that the feedback of all earlier inputs is the same for all branches, and one matrix product.

Shapes: G groups, R rows (output channels) a group, K inputs, B inputs of a lazy batch or a window, M branches that are
alive. A and N are (G, K, K); rows w* and integers (G, R, K); the scale is (G, R), or (G, R, K) where each input of a
row has its own. Work is done in the metric's type. Inside ``gptq`` the inputs are the second axis: (G, K, R).

Units: with one scale a row, all weights are divided by it first, and levels are integers. With a scale for each input,
weights are in units of the row's largest absolute scale, and the levels of an input are multiples of its scale.

Zero points (G, R, K), one for each input of a row, move the ends of its integers: they are counted from the zero point.
Those of half steps are fractions, and so are integers that are counted from them.

Where a spec has a pair_limit, inputs 2i and 2i + 1 are a pair (``pairs.order_pairs``), and the integer of each is
clamped to what the integer of the other leaves it. ``search`` keeps the limit with a width of 1 alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..spec import QuantSpec
from .gram import factorize
from .pairs import clamp_beside

# Inputs of a lazy batch (Frantar et al. 2023, section 3.3): the inputs behind the batch get the feedback of all its
# errors as one matrix product.
LAZY_BATCH = 32
# Inputs after which the K-best search keeps its best branch alone. With 128 the loss is 0.5% less, and the time a half
# more.
WINDOW = 64
# Errors of all branches of a window may take so many bytes, which is about what stays in a core's cache.
BRANCH_BYTES = 2**20


def order_inputs(gram: torch.Tensor) -> torch.Tensor:
    """The order (G, K) in which inputs are rounded: by descending power A_jj (GPTQ's ``act_order``).

    Errors of strong inputs cost most, and are made while most inputs are still there to compensate for them.
    """
    return gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)


class Metric(NamedTuple):
    """What the loss of integers depends on, for each group in units of its mean variance ``power`` (G, 1).

    gram: A (G, K, K); upper: the upper triangular N (G, K, K) with ``A = N N^T``.
    """

    gram: torch.Tensor
    upper: torch.Tensor
    power: torch.Tensor

    @classmethod
    def of(cls, gram: torch.Tensor, unit: torch.Tensor | None = None) -> Metric:
        """The metric of a Gram matrix, in its type, which is in units of ``unit`` (G, 1), by default 1.

        One that is not positive definite raises.
        """
        power = gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        gram = gram / power[..., None]
        return cls(gram, factorize(gram.flip(1, 2)).flip(1, 2), power.double() if unit is None else power * unit)


def excess_loss(gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Loss of each row above that of the real-valued optimum: ``(s q - w*) A (s q - w*)^T``, (G, R)."""
    difference = integers * expand_scale(scale) - optimum
    return ((difference @ gram) * difference).sum(2)


def expand_scale(scale: torch.Tensor) -> torch.Tensor:
    """The scale, (G, R) or (G, R, K), in a shape that broadcasts against integers (G, R, K)."""
    return scale if scale.dim() == 3 else scale[..., None]


def split_scale(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The unit (G, R) of each row, and the scale of each input in it, (G, R, K); None with one scale a row."""
    if scale.dim() == 2:
        return scale, None
    unit = scale.abs().amax(2)
    return unit, scale / unit[..., None]


def gptq(
    metric: Metric, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec, zero: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each input to the integer nearest to its compensated weight (Frantar et al. 2023, algorithm 1).

    Returns the integers (G, R, K) in the metric's type, and the loss, float64 in the scale's shape: of each row, or
    each input's share of it.
    """
    upper = metric.upper
    unit, input_scale = split_scale(scale)
    goal = (rows / unit[..., None]).to(upper).mT.contiguous()
    input_scale = None if input_scale is None else input_scale.to(upper).mT.contiguous()
    zero = None if zero is None else zero.to(upper).mT.contiguous()
    compensated, levels = goal.clone(), torch.empty_like(goal)
    diagonal = upper.diagonal(dim1=1, dim2=2).unsqueeze(2)
    for batch in lazy_batches(goal.shape[1]):
        feedback = upper[:, batch] / -diagonal.mT
        grid = Levels.of(spec, batch, input_scale, zero)
        levels[:, batch], errors = round_batch(compensated[:, batch], goal[:, batch], feedback[:, :, batch], grid)
        compensated[:, batch.stop :].baddbmm_(feedback[:, :, batch.stop :].mT, errors)
    losses = compensated.sub_(levels).mul_(diagonal).square_()
    unit = metric.power * unit.square()
    if input_scale is None:
        return levels.mT, losses.sum(1, dtype=torch.float64) * unit
    return levels.div_(input_scale).round_().mT, losses.mT * unit[..., None]


def search(
    metric: Metric,
    rows: torch.Tensor,
    scale: torch.Tensor,
    spec: QuantSpec,
    *,
    width: int,
    zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """Integers (G, R, K) of the K-best search that keeps ``width`` branches of each row (the M-algorithm).

    A branch forks at each input to the two integers of the grid next to its compensated weight.
    """
    if width == 1:
        return gptq(metric, rows, scale, spec, zero)[0]
    row_bytes = len(rows) * metric.upper.element_size() * WINDOW * width
    zero = torch.zeros_like(rows[..., :1]) if zero is None else zero
    parts = zip(*(x.split(max(1, BRANCH_BYTES // row_bytes), 1) for x in (rows, scale, zero)), strict=True)
    return torch.cat([_search_rows(metric.upper, part, own, by, (spec, width)) for part, own, by in parts], 1)


def _search_rows(
    upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, how: tuple[QuantSpec, int]
) -> torch.Tensor:
    """``search`` for as many rows as memory has room for at once; how: the spec, and the width."""
    unit, input_scale = split_scale(scale)
    goal = (rows / unit[..., None]).to(upper)
    input_scale = torch.ones_like(goal[..., :1]).expand_as(goal) if input_scale is None else input_scale.to(upper)
    zero = zero.to(upper).expand_as(goal)
    compensated, integers = goal.clone(), torch.empty_like(goal)
    diagonal = upper.diagonal(dim1=1, dim2=2).unsqueeze(1)
    for batch in lazy_batches(goal.shape[2], WINDOW):
        feedback = upper[:, batch] / -diagonal
        # By input, as the search takes them one after the other.
        inputs = (x[..., batch].permute(2, 0, 1).contiguous() for x in (goal, compensated, input_scale, zero))
        window = _Window(feedback[:, :, batch], diagonal[..., batch].permute(2, 0, 1), *how)
        errors = window.search(*inputs)
        compensated[..., batch.stop :].baddbmm_(errors, feedback[:, :, batch.stop :])
        integers[..., batch] = (errors + goal[..., batch]).div_(input_scale[..., batch])
    return round_from(integers, zero, how[0])


class _Window:
    """The K-best search through one window of inputs.

    feedback: ``- N_kj / N_jj`` (G, B, B) between the inputs of the window; diagonal N_jj (B, G, 1).
    """

    def __init__(self, feedback: torch.Tensor, diagonal: torch.Tensor, spec: QuantSpec, width: int) -> None:
        self.feedback, self.diagonal, self.spec, self.width = feedback, diagonal, spec, width

    def search(
        self, goals: torch.Tensor, starts: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
    ) -> torch.Tensor:
        """Errors ``s q - w*`` (G, R, B) of the best branch.

        goals w*, starts (compensated for all earlier windows), scales and zero points of the inputs, each (B, G, R).
        """
        size, groups, rows = goals.shape
        weights = (scales * self.diagonal).square_()[..., None, None]
        fork = torch.tensor([0.0, 1.0]).to(goals)
        errors = goals.new_zeros(groups, rows, size)  # of each branch, (G, R M, B)
        loss = goals.new_zeros(groups, rows, 1)
        first = torch.arange(groups * rows, device=goals.device).reshape(groups, rows, 1)
        lows, highs = self.spec.qmin - zeros, self.spec.qmax - 1 - zeros
        part = (zeros - zeros.round()).unsqueeze(3) if self.spec.half_steps else None
        inputs = (x.unsqueeze(3).unbind() for x in (goals, starts, scales, lows, highs))
        for j, (goal, start, scale, least, most, weight) in enumerate(zip(*inputs, weights.unbind(), strict=True)):
            branches = loss.shape[2]
            position = start.expand_as(loss)
            if j:
                position = position + (errors[:, :, :j] @ self.feedback[:, :j, j, None]).view_as(loss)
            position = position / scale
            low = position.floor() if part is None else (position + part[j]).floor_().sub_(part[j])
            low.clamp_(least, most)
            # Both forks of each branch side by side, (G, R, M, 2).
            distance = torch.sub(low, position, out=position)[..., None] + fork
            losses = torch.addcmul(loss[..., None], distance * weight, distance).flatten(2)
            loss, best = losses.topk(min(self.width, 2 * branches), dim=2, largest=False)
            parent = best >> 1
            error = torch.addcmul(-goal, low.gather(2, parent).add_(best & 1), scale)
            errors = errors.flatten(0, 1).index_select(0, (first * branches + parent).flatten())
            errors[:, j] = error.flatten()
            errors = errors.view(groups, -1, size)
        chosen = errors.view(groups, rows, -1, size)
        best = loss.argmin(2)[..., None, None].expand(-1, -1, 1, size)
        return chosen.gather(2, best).squeeze(2)


def round_from(levels: torch.Tensor, zero: torch.Tensor | float, spec: QuantSpec) -> torch.Tensor:
    """The nearest integers, counted from zero points, which are fractions where the spec has half steps alone."""
    return (levels + zero).round_() - zero if spec.half_steps else levels.round()


def lazy_batches(inputs: int, size: int | None = None) -> list[slice]:
    """The inputs in batches of ``size`` (LAZY_BATCH)."""
    size = size or LAZY_BATCH
    return [slice(start, min(start + size, inputs)) for start in range(0, inputs, size)]


class Levels(NamedTuple):
    """The levels of the inputs of a lazy batch; scale and zero points (G, B, R), None for 1 and for 0."""

    spec: QuantSpec
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None

    @classmethod
    def of(cls, spec: QuantSpec, batch: slice, scale: torch.Tensor | None, zero: torch.Tensor | None) -> Levels:
        """Those of one batch of all inputs, (G, K, R)."""
        return cls(spec, *(None if each is None else each[:, batch] for each in (scale, zero)))


def round_batch(
    current: torch.Tensor,
    before: torch.Tensor,
    feedback: torch.Tensor,
    grid: Levels,
    *,
    waiting: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the inputs of one lazy batch in turn, each to the level nearest to its compensated weight (G, B, R).

    Returns the levels, and how far each lies from ``before``, both (G, B, R). This difference times ``feedback``
    (G, B, B) [j, k] is added to the compensated weight of each k > j, in place: ``current`` ends as they were when
    their inputs were rounded.

    waiting: the levels of inputs that are not rounded yet, for a pair_limit; None: they have none.
    """
    # By NumPy, whose calls on so few values take a third of torch's time, and without BLAS, whose sums may depend
    # on the number of threads.
    near = current.cpu()
    now, start = near.numpy(), before.cpu().numpy()
    backwards = np.ascontiguousarray(feedback.mT.cpu().numpy())
    spec = grid.spec
    input_scales, zeros = (None if each is None else each.cpu().numpy() for each in grid[1:])
    parts = zeros - np.rint(zeros) if zeros is not None and spec.half_steps else None
    levels, changes = np.empty_like(now), np.empty_like(now)
    partners = _partners(levels, None if waiting is None else waiting.cpu().numpy(), spec)
    for j in range(now.shape[1]):
        position, level = now[:, j], levels[:, j]
        if j:
            position += np.einsum("gk,gkr->gr", backwards[:, j, :j], changes[:, :j])
        scale = None if input_scales is None else input_scales[:, j]
        goal = position if scale is None else position / scale
        np.rint(goal if parts is None else goal + parts[:, j], out=level)
        if parts is not None:
            level -= parts[:, j]
        partner = partners[j]
        if partner is not None:
            clamp_beside(torch.from_numpy(level), torch.from_numpy(partner), spec)
        else:
            moved = 0 if zeros is None else zeros[:, j]
            np.minimum(np.maximum(level, spec.qmin - moved, out=level), spec.qmax - moved, out=level)
            if scale is not None:
                level *= scale
        np.subtract(level, start[:, j], out=changes[:, j])
    if near is not current:
        current.copy_(near.to(current.device))
    return torch.from_numpy(levels).to(current.device), torch.from_numpy(changes).to(current.device)


def _partners(levels: np.ndarray, waiting: np.ndarray | None, spec: QuantSpec) -> list[np.ndarray | None]:
    """For each input of a batch (G, B, R) the integers of its pair's other input, at the time that it is rounded.

    The second input of a pair sees the new integer of the first; the first sees the second's of ``waiting``, and None
    without these. All are None without a pair_limit.
    """
    count = levels.shape[1]
    if spec.pair_limit is None:
        return [None] * count
    others = [None] * count if waiting is None else [*waiting.swapaxes(0, 1)]
    return [levels[:, j - 1] if j % 2 else (others[j + 1] if j + 1 < count else None) for j in range(count)]
