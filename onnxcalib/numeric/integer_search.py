"""Integers of least quadratic loss: GPTQ, K-best search and coordinate descent on one Gram matrix.

Over integers q the loss is ``(s q - W*) A (s q - W*)^T``. With A^-1 = U^T U, U upper triangular, it is the sum over the
inputs in turn of ``(s (q_j - w_j) / U_jj)^2``, w_j being the best weight once the integers before it are chosen: its
wish. So the inputs are a tree, the nearest point of a lattice the leaf of least loss, and GPTQ the first leaf found.

A scale is one a row, (groups, R), or one of each input of a row, (groups, R, K). With the first all is computed in
units of it, with the second in those of the weights, where an input's integers are multiples of its step.

Where a spec has a pair_limit, inputs 2i and 2i + 1 are a pair (``saturation.order_pairs``), and the integer of each
keeps to what that of the other leaves it.
"""

from __future__ import annotations

import torch

from ..spec import QuantSpec
from .saturation import clamp_beside

# Inputs after which the rest of the matrix hears of their moves, as one matrix product.
LAZY = 32
SWEEPS = 6
# Wishes of all branches that are followed at once may take so many bytes.
BRANCH_BYTES = 64 * 2**20


def order_inputs(gram: torch.Tensor) -> torch.Tensor:
    """Inputs (groups, K), those of most power first: chosen while others can still make up for them."""
    return gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)


def factor(gram: torch.Tensor) -> torch.Tensor:
    """U (groups, K, K) of the Gram matrix."""
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(gram))).mT.contiguous()


def excess(gram: torch.Tensor, optimum: torch.Tensor, integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Loss above the continuous optimum, ``d A d^T`` with ``d = s q - W*``, by group and row (groups, R)."""
    difference = integers * spread(scale) - optimum
    return ((difference @ gram) * difference).sum(2)


def spread(scale: torch.Tensor) -> torch.Tensor:
    """The scale in a shape that broadcasts to the integers'."""
    return scale if scale.dim() == 3 else scale[..., None]


def _units(scale: torch.Tensor) -> tuple[torch.Tensor | float, torch.Tensor | None]:
    """What the rows are divided by, and the inputs' steps (groups, K, R) in the units that are left."""
    return (1.0, scale.mT.contiguous()) if scale.dim() == 3 else (scale[..., None], None)


def _on_grid(values: torch.Tensor, steps: torch.Tensor | None) -> torch.Tensor:
    """The integers of values that are multiples of their steps."""
    return values if steps is None else (values / steps).round_()


def gptq(upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec):
    """Round input after input to its wish, each time moving those to come to make up for it (Frantar et al. 2023).

    upper U (groups, K, K); rows W* (groups, R, K). Gives integers (groups, R, K) and their loss in the scale's shape.
    """
    unit, steps = _units(scale)
    compensated = (rows / unit).mT.contiguous()
    values, losses = torch.empty_like(compensated), torch.empty_like(compensated)
    diagonal = upper.diagonal(dim1=1, dim2=2).unsqueeze(2)
    for own in _blocks(compensated.shape[1]):
        rates = upper[:, own] / diagonal[:, own]
        own_steps = None if steps is None else steps[:, own]
        values[:, own], moved = _round_in_turn(compensated[:, own], rates[:, :, own], spec, steps=own_steps)
        compensated[:, own.stop :].baddbmm_(rates[:, :, own.stop :].mT, moved)
        losses[:, own] = (moved / diagonal[:, own]).square_()
    loss = losses.sum(1) * scale.square() if steps is None else losses.mT
    return _on_grid(values, steps).mT, loss


def search(upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec, *, width: int):
    """The best leaf where ``width`` branches are followed (the M-algorithm).

    Each forks to the two integers next to its wish, of which one beyond the grid is dropped.

    Arguments and integers as in ``gptq``, which it is for a width of 1, the one that keeps a pair_limit.
    """
    if width == 1:
        return gptq(upper, rows, scale, spec)[0]
    branch = len(rows) * rows.shape[2] * rows.element_size() * width
    parts = zip(*(x.split(max(1, BRANCH_BYTES // branch), 1) for x in (rows, scale)), strict=True)
    return torch.cat([_follow(upper, part, own, spec, width=width) for part, own in parts], 1)


def _follow(upper, rows, scale, spec: QuantSpec, *, width: int) -> torch.Tensor:
    """``search`` for some rows (groups, R, K). Branches are the last axis, inputs the second."""
    unit, steps = _units(scale)
    compensated = rows / unit
    compensated = compensated.mT.unsqueeze(3).contiguous()
    integers = compensated[:, :0]
    loss = torch.zeros_like(compensated[:, 0])
    diagonal = upper.diagonal(dim1=1, dim2=2)[:, :, None]
    for own in _blocks(compensated.shape[1]):
        rates = upper[:, own] / diagonal[:, own]
        inside = (rates[:, :, own], diagonal[:, own].reciprocal(), None if steps is None else steps[:, own])
        chosen, moved, loss, parent = _fork_in_turn(compensated[:, : own.stop - own.start], inside, loss, spec, width)
        integers = torch.cat([_take(integers, parent), chosen], 1)
        compensated = _take(compensated[:, own.stop - own.start :], parent)
        compensated.flatten(2).baddbmm_(rates[:, :, own.stop :].mT, moved.flatten(2))
    return _on_grid(_take(integers, loss.argmin(2, keepdim=True)).squeeze(3), steps).mT


def _fork_in_turn(near, inside, loss, spec: QuantSpec, width: int):
    """Fork the branches at each of a few inputs and keep the best: integers, moves, losses, and the branch each is of.

    near: wishes (groups, B, R, M); inside: rates (groups, B, B), 1 / U_jj (groups, B, 1) and steps (groups, B, R) or
    None, with which integers are given times them; loss (groups, R, M).
    """
    rates, weights, steps = inside
    integers = moved = near[:, :0]
    parent = torch.arange(near.shape[3], device=near.device).expand(loss.shape)
    for j in range(len(rates[0])):
        compensated = near[:, 0]
        level = compensated if steps is None else compensated / steps[:, j, :, None]
        nearest = level.round().clamp_(spec.qmin, spec.qmax)
        other = nearest + torch.where(level < nearest, -1.0, 1.0)
        fork = torch.cat([nearest, other], 2)
        outside = (fork < spec.qmin) | (fork > spec.qmax)
        fork = fork if steps is None else fork.mul_(steps[:, j, :, None])
        losses = ((fork - compensated.repeat(1, 1, 2)) * weights[:, j, None]).square_() + loss.repeat(1, 1, 2)
        losses.masked_fill_(outside, torch.inf)
        loss, kept = losses.topk(min(width, losses.shape[2]), dim=2, largest=False)
        source = kept % compensated.shape[2]
        integer = fork.gather(2, kept)
        move = (integer - compensated.gather(2, source)).unsqueeze(1)
        integers = torch.cat([_take(integers, source), integer.unsqueeze(1)], 1)
        moved = torch.cat([_take(moved, source), move], 1)
        parent = parent.gather(2, source)
        near = _take(near[:, 1:], source).addcmul_(move, rates[:, j, j + 1 :, None, None])
    return integers, moved, loss, parent


def _take(values: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
    """Of values (groups, B, R, M) those of ``branch`` (groups, R, M')."""
    return values.gather(3, branch.unsqueeze(1).expand(-1, values.shape[1], -1, -1))


def descend(gram, optimum, integers, scale, spec: QuantSpec) -> torch.Tensor:
    """Coordinate descent on the integers until no single change of one of them lowers the loss, or SWEEPS are done.

    With A the Gram matrix, the loss along q_j is least at its wish ``q_j - ((q - W* / s) A)_j / A_jj``, which a change
    of q_k by d moves by ``-d A_kj / A_jj``.
    """
    curvature = gram.diagonal(dim1=1, dim2=2).unsqueeze(1)
    unit, steps = _units(scale)
    integers = integers if steps is None else integers * scale
    compensated = (integers - (integers - optimum / unit) @ gram / curvature).mT.contiguous()
    integers = integers.mT.clone(memory_format=torch.contiguous_format)
    for _ in range(SWEEPS):
        changed = False
        for own in _blocks(compensated.shape[1]):
            rates = gram[:, own] / -curvature
            rates[:, :, own].diagonal(dim1=1, dim2=2).zero_()
            own_steps = None if steps is None else steps[:, own]
            before = integers[:, own]
            integers[:, own], moved = _round_in_turn(
                compensated[:, own], rates[:, :, own], spec, before, steps=own_steps
            )
            if moved.any():
                compensated.baddbmm_(rates.mT, moved)
                changed = True
        if not changed:
            break
    return _on_grid(integers, steps).mT


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + LAZY, size)) for start in range(0, size, LAZY)]


def _round_in_turn(
    compensated, rates, spec: QuantSpec, before=None, *, steps=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers of a few inputs, each the nearest to its wish, and their moves: from ``before``, else from the wish.

    Each move changes the wishes of the others: that of k by rates (groups, B, B) [j, k] times the move of j. Integers,
    moves and wishes are (groups, B, R), in units of the scale, or with ``steps`` (groups, B, R) in those of the
    weights. Operators in place, as all that is slow is their number.
    """
    near, integers, moved = compensated.clone(), torch.empty_like(compensated), torch.empty_like(compensated)
    turns = (x.unsqueeze(2).unbind(1) for x in (near, near if before is None else before, integers, moved))
    own = [None] * compensated.shape[1] if steps is None else steps.unsqueeze(2).unbind(1)
    beside = _partners(integers, before, spec)
    for near_j, before_j, integer_j, moved_j, rates_j, step_j, partner_j in zip(
        *turns, rates.unsqueeze(3).unbind(1), own, beside, strict=True
    ):
        if partner_j is not None:
            clamp_beside(torch.round(near_j, out=integer_j), partner_j, spec)
        elif step_j is None:
            torch.round(near_j, out=integer_j).clamp_(spec.qmin, spec.qmax)
        else:
            torch.div(near_j, step_j, out=integer_j).round_().clamp_(spec.qmin, spec.qmax).mul_(step_j)
        torch.sub(integer_j, before_j, out=moved_j)
        near.addcmul_(moved_j, rates_j)
    return integers, moved


def _partners(integers, before, spec: QuantSpec) -> list[torch.Tensor | None]:
    """For each of a few inputs (groups, B, R) what holds its partner's integer when its turn comes; None: not chosen.

    The first of a pair sees the second as it was ``before``, the second sees the first as it has become.
    """
    count = integers.shape[1]
    if spec.pair_limit is None:
        return [None] * count
    chosen = integers.unsqueeze(2).unbind(1)
    waiting = [None] * count if before is None else before.unsqueeze(2).unbind(1)
    return [chosen[j - 1] if j % 2 else (waiting[j + 1] if j + 1 < count else None) for j in range(count)]
