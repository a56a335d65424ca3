"""Find a layer's integers: GPTQ, K-best search and coordinate descent on the same quadratic loss.

The loss of a row of integers q is ``(s q - w*) A (s q - w*)^T``. A is the Gram matrix of the layer's inputs (GPTQ's
Hessian), w* the real-valued row of least loss, s the scale.

Let U be the Cholesky factor of the inverse Hessian: upper triangular, with ``A^-1 = U^T U``. GPTQ (Frantar et al. 2023)
rounds the inputs one after the other and feeds each rounding error back into the inputs that are still to come:

    v_k <- v_k + (s q_j - v_j) U_jk / U_jj    for every k > j, from v = w*

v_j, as it is when input j is rounded, is its compensated weight. The loss is then a sum over the inputs,
``sum_j ((s q_j - v_j) / U_jj)^2``, and every choice of integers is a path in a tree with one input a level.

``gptq`` follows one path: every input takes the integer nearest to its compensated weight. ``search`` is the K-best
search, a beam search by breadth: of all paths that were extended by one input, the ``width`` of least loss go on. GPTQ
is the case of width 1. ``descend`` then refines integers by coordinate descent.

Shapes: G groups, R rows (output channels) a group, K inputs, B inputs of a lazy batch, M branches that are alive.
A and U are (G, K, K); rows w* and integers (G, R, K); the scale is (G, R), or (G, R, K) where each input of a row has
its own. Inside the searches the inputs are the second axis: (G, K, R), and (G, K, R, M) with branches.

Units: with one scale a row, all weights are divided by it first, and levels are integers. With a scale for each input,
weights keep their own units, and the levels of an input are multiples of its scale, which is ``input_scale`` (G, B, R)
in the code, and None in the first case.

Where a spec has a pair_limit, inputs 2i and 2i + 1 are a pair (``saturation.order_pairs``), and the integer of each is
clamped to what the integer of the other leaves it. ``search`` keeps the limit with a width of 1 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..spec import QuantSpec
from .saturation import clamp_beside

# Inputs of a lazy batch (Frantar et al. 2023, section 3.3): the inputs behind the batch get the feedback of all its
# errors as one matrix product.
LAZY_BATCH = 32
# Most passes of coordinate descent over the inputs.
SWEEPS = 6
# Compensated weights of all branches that are followed at once may take so many bytes.
BRANCH_BYTES = 64 * 2**20


def order_inputs(gram: torch.Tensor) -> torch.Tensor:
    """The order (G, K) in which inputs are rounded: by descending power A_jj (GPTQ's ``act_order``).

    Errors of strong inputs cost most, and are made while most inputs are still there to compensate for them.
    """
    return gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)


def factor_inverse(gram: torch.Tensor) -> torch.Tensor:
    """The Cholesky factor U (G, K, K) of the inverse, ``A^-1 = U^T U``; A that is not positive definite raises."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    upper: torch.Tensor = torch.linalg.cholesky(inverse).mT.contiguous()
    return upper


def excess_loss(gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Loss of each row above that of the real-valued optimum: ``(s q - w*) A (s q - w*)^T``, (G, R)."""
    difference = integers * expand_scale(scale) - optimum
    return ((difference @ gram) * difference).sum(2)


def expand_scale(scale: torch.Tensor) -> torch.Tensor:
    """The scale, (G, R) or (G, R, K), in a shape that broadcasts against integers (G, R, K)."""
    return scale if scale.dim() == 3 else scale[..., None]


def gptq(
    upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each input to the integer nearest to its compensated weight (Frantar et al. 2023, algorithm 1).

    Returns the integers (G, R, K) and the loss in the scale's shape: of each row, or each input's share of it.
    """
    unit, input_scale = _split_scale(scale)
    compensated = (rows / unit).mT.contiguous()
    levels, losses = torch.empty_like(compensated), torch.empty_like(compensated)
    diagonal = upper.diagonal(dim1=1, dim2=2).unsqueeze(2)
    for batch in _lazy_batches(compensated.shape[1]):
        feedback = upper[:, batch] / diagonal[:, batch]
        own_scale = None if input_scale is None else input_scale[:, batch]
        levels[:, batch], errors = _round_batch(
            compensated[:, batch], feedback[:, :, batch], spec, input_scale=own_scale
        )
        compensated[:, batch.stop :].baddbmm_(feedback[:, :, batch.stop :].mT, errors)
        losses[:, batch] = (errors / diagonal[:, batch]).square_()
    loss = losses.sum(1) * scale.square() if input_scale is None else losses.mT
    return _to_integers(levels, input_scale).mT, loss


def search(
    upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec, *, width: int
) -> torch.Tensor:
    """Integers (G, R, K) of the K-best search that keeps ``width`` branches of each row (the M-algorithm).

    A branch forks at each input to the two integers next to its compensated weight; one beyond the grid is dropped.
    """
    if width == 1:
        return gptq(upper, rows, scale, spec)[0]
    row_bytes = len(rows) * rows.element_size() * rows.shape[2] * width
    parts = zip(*(x.split(max(1, BRANCH_BYTES // row_bytes), 1) for x in (rows, scale)), strict=True)
    return torch.cat([_search_rows(upper, part, own, spec, width=width) for part, own in parts], 1)


def _search_rows(
    upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec, *, width: int
) -> torch.Tensor:
    """``search`` for as many rows as memory has room for at once."""
    unit, input_scale = _split_scale(scale)
    compensated = (rows / unit).mT.unsqueeze(3).contiguous()
    levels = compensated[:, :0]
    loss = torch.zeros_like(compensated[:, 0])
    diagonal = upper.diagonal(dim1=1, dim2=2)[:, :, None]
    for batch in _lazy_batches(compensated.shape[1]):
        feedback = upper[:, batch] / diagonal[:, batch]
        inside = _Batch(
            feedback[:, :, batch],
            diagonal[:, batch].reciprocal(),
            None if input_scale is None else input_scale[:, batch],
        )
        size = batch.stop - batch.start
        kept = _fork_batch(compensated[:, :size], loss, inside, spec, width)
        levels = torch.cat([_select(levels, kept.parent), kept.levels], 1)
        loss = kept.loss
        compensated = _select(compensated[:, size:], kept.parent)
        compensated.flatten(2).baddbmm_(feedback[:, :, batch.stop :].mT, kept.errors.flatten(2))
    best = _select(levels, loss.argmin(2, keepdim=True)).squeeze(3)
    return _to_integers(best, input_scale).mT


class _Batch(NamedTuple):
    """One lazy batch: feedback U_jk / U_jj (G, B, B), weights 1 / U_jj (G, B, 1), input_scale (G, B, R) or None."""

    feedback: torch.Tensor
    weights: torch.Tensor
    input_scale: torch.Tensor | None


class _Kept(NamedTuple):
    """The branches that are alive behind a lazy batch.

    levels and errors: what was chosen in the batch, and it less the compensated weight, (G, B, R, M). loss: of the
    whole path, (G, R, M). parent: index of the branch in front of the batch that each comes from, (G, R, M).
    """

    levels: torch.Tensor
    errors: torch.Tensor
    loss: torch.Tensor
    parent: torch.Tensor


def _fork_batch(compensated: torch.Tensor, loss: torch.Tensor, batch: _Batch, spec: QuantSpec, width: int) -> _Kept:
    """Extend all branches by the inputs of one lazy batch, and keep the ``width`` best of each row after each input.

    compensated (G, B, R, M): the batch's compensated weights in each branch; loss (G, R, M): of each branch so far.
    """
    levels = errors = compensated[:, :0]
    parent = torch.arange(compensated.shape[3], device=compensated.device).expand(loss.shape)
    for j in range(batch.weights.shape[1]):
        current, branches = compensated[:, 0], compensated.shape[3]
        own_scale = None if batch.input_scale is None else batch.input_scale[:, j, :, None]
        # Both forks of all branches side by side, (G, R, 2 M): fork f is of branch f mod M.
        forks, outside = _two_nearest(current, own_scale, spec)
        fork_errors = forks - current.repeat(1, 1, 2)
        fork_loss = (fork_errors * batch.weights[:, j, None]).square_() + loss.repeat(1, 1, 2)
        fork_loss.masked_fill_(outside, torch.inf)
        loss, best = fork_loss.topk(min(width, 2 * branches), dim=2, largest=False)
        origin = best % branches
        error = fork_errors.gather(2, best).unsqueeze(1)
        levels = torch.cat([_select(levels, origin), forks.gather(2, best).unsqueeze(1)], 1)
        errors = torch.cat([_select(errors, origin), error], 1)
        parent = parent.gather(2, origin)
        # Error feedback into the rest of the batch.
        compensated = _select(compensated[:, 1:], origin).addcmul_(error, batch.feedback[:, j, j + 1 :, None, None])
    return _Kept(levels, errors, loss, parent)


def _two_nearest(
    compensated: torch.Tensor, input_scale: torch.Tensor | None, spec: QuantSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two levels next to each compensated weight (G, R, M), and whether each is beyond the grid, (G, R, 2 M).

    First come the nearest levels of all branches, then those on the other side of the compensated weights.
    """
    position = compensated if input_scale is None else compensated / input_scale
    nearest = position.round().clamp_(spec.qmin, spec.qmax)
    other = nearest + torch.where(position < nearest, -1.0, 1.0)
    forks = torch.cat([nearest, other], 2)
    outside = (forks < spec.qmin) | (forks > spec.qmax)
    return forks if input_scale is None else forks.mul_(input_scale), outside


def _select(values: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """The values (G, B, R, M) of the branches whose indices are ``branch`` (G, R, M'), as (G, B, R, M')."""
    return values.gather(3, branch.unsqueeze(1).expand(-1, values.shape[1], -1, -1))


def descend(
    gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor, spec: QuantSpec
) -> torch.Tensor:
    """Coordinate descent from ``integers`` (G, R, K) until no change of one integer lowers the loss, or SWEEPS passes.

    With all other integers fixed, in units of the scale, the loss is least at ``v_j = q_j - ((q - w*) A)_j / A_jj``.
    It is the compensated weight of input j here. A change of q_j by d moves v_k by ``-d A_jk / A_kk``.
    """
    curvature = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    unit, input_scale = _split_scale(scale)
    levels = integers if input_scale is None else integers * scale
    compensated = (levels - (levels - optimum / unit) @ gram / curvature).mT.contiguous()
    levels = levels.mT.clone(memory_format=torch.contiguous_format)
    for _ in range(SWEEPS):
        changed = False
        for batch in _lazy_batches(compensated.shape[1]):
            feedback = gram[:, batch] / -curvature
            feedback[:, :, batch].diagonal(dim1=1, dim2=2).zero_()
            own_scale = None if input_scale is None else input_scale[:, batch]
            levels[:, batch], changes = _round_batch(
                compensated[:, batch], feedback[:, :, batch], spec, levels[:, batch], input_scale=own_scale
            )
            if changes.any():
                compensated.baddbmm_(feedback.mT, changes)
                changed = True
        if not changed:
            break
    return _to_integers(levels, input_scale).mT


def _split_scale(scale: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | None]:
    """What rows are divided by, and the input_scale (G, K, R) of what is left (None: levels are integers)."""
    return (1.0, scale.mT.contiguous()) if scale.dim() == 3 else (scale[..., None], None)


def _to_integers(levels: torch.Tensor, input_scale: torch.Tensor | None) -> torch.Tensor:
    return levels if input_scale is None else (levels / input_scale).round_()


def _lazy_batches(inputs: int) -> list[slice]:
    return [slice(start, min(start + LAZY_BATCH, inputs)) for start in range(0, inputs, LAZY_BATCH)]


def _round_batch(
    compensated: torch.Tensor,
    feedback: torch.Tensor,
    spec: QuantSpec,
    before: torch.Tensor | None = None,
    *,
    input_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the inputs of one lazy batch in turn, each to the level nearest to its compensated weight (G, B, R).

    Returns the levels, and how far each lies from the level ``before``, or from the compensated weight if that is None,
    both (G, B, R). This difference times ``feedback`` (G, B, B) [j, k] is added to the compensated weight of k.
    """
    # In place and by views, as the number of torch calls is what takes the time.
    current, levels, changes = compensated.clone(), torch.empty_like(compensated), torch.empty_like(compensated)
    by_input = (x.unsqueeze(2).unbind(1) for x in (current, current if before is None else before, levels, changes))
    scales: Sequence[torch.Tensor | None] = (
        [None] * compensated.shape[1] if input_scale is None else input_scale.unsqueeze(2).unbind(1)
    )
    partners = _partners(levels, before, spec)
    for current_j, before_j, level_j, change_j, feedback_j, scale_j, partner_j in zip(
        *by_input, feedback.unsqueeze(3).unbind(1), scales, partners, strict=True
    ):
        if partner_j is not None:
            clamp_beside(torch.round(current_j, out=level_j), partner_j, spec)
        elif scale_j is None:
            torch.round(current_j, out=level_j).clamp_(spec.qmin, spec.qmax)
        else:
            torch.div(current_j, scale_j, out=level_j).round_().clamp_(spec.qmin, spec.qmax).mul_(scale_j)
        torch.sub(level_j, before_j, out=change_j)
        current.addcmul_(change_j, feedback_j)
    return levels, changes


def _partners(levels: torch.Tensor, before: torch.Tensor | None, spec: QuantSpec) -> Sequence[torch.Tensor | None]:
    """For each input of a batch (G, B, R) the integers of its pair's other input, at the time that it is rounded.

    The second input of a pair sees the new integer of the first; the first sees the second's as it was ``before``, and
    None where that was not chosen yet. All are None without a pair_limit.
    """
    count = levels.shape[1]
    if spec.pair_limit is None:
        return [None] * count
    chosen = levels.unsqueeze(2).unbind(1)
    waiting = [None] * count if before is None else before.unsqueeze(2).unbind(1)
    return [chosen[j - 1] if j % 2 else (waiting[j + 1] if j + 1 < count else None) for j in range(count)]
