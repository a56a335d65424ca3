"""Integers of least quadratic loss: GPTQ, K-best search and coordinate descent on one Gram matrix.

Over integers q the loss is ``(s q - W*) A (s q - W*)^T``. With A^-1 = U^T U, U upper triangular, it is the sum over the
inputs in turn of ``(s (q_j - w_j) / U_jj)^2``, w_j being the best weight once the integers before it are chosen: its
wish. So the inputs are a tree, the nearest point of a lattice the leaf of least loss, and GPTQ the first leaf found.
"""

from __future__ import annotations

import torch

from ..spec import QuantSpec

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
    difference = integers * scale[..., None] - optimum
    return ((difference @ gram) * difference).sum(2)


def gptq(upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec):
    """Round input after input to its wish, each time moving those to come to make up for it (Frantar et al. 2023).

    upper U (groups, K, K); rows W* (groups, R, K); scale (groups, R). Gives integers (groups, R, K) and their loss.
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


def search(upper: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, spec: QuantSpec, *, width: int):
    """The best leaf where ``width`` branches are followed (the M-algorithm).

    Each forks to the two integers next to its wish, of which one beyond the grid is dropped.

    Arguments and integers as in ``gptq``, which it is for a width of 1.
    """
    branch = len(rows) * rows.shape[2] * rows.element_size() * width
    parts = zip(*(x.split(max(1, BRANCH_BYTES // branch), 1) for x in (rows, scale)), strict=True)
    return torch.cat([_follow(upper, part / own[..., None], spec, width) for part, own in parts], 1)


def _follow(upper, wish, spec: QuantSpec, width: int) -> torch.Tensor:
    """``search`` for rows in units of their scale (groups, R, K). Branches are the last axis, inputs the second."""
    wish = wish.mT.unsqueeze(3).contiguous()
    integers = wish[:, :0]
    loss = torch.zeros_like(wish[:, 0])
    diagonal = upper.diagonal(dim1=1, dim2=2)[:, :, None]
    for own in _blocks(wish.shape[1]):
        rates = upper[:, own] / diagonal[:, own]
        inside = (rates[:, :, own], diagonal[:, own].reciprocal())
        chosen, moved, loss, parent = _fork_in_turn(wish[:, : own.stop - own.start], inside, loss, spec, width)
        integers = torch.cat([_take(integers, parent), chosen], 1)
        wish = _take(wish[:, own.stop - own.start :], parent)
        wish.flatten(2).baddbmm_(rates[:, :, own.stop :].mT, moved.flatten(2))
    return _take(integers, loss.argmin(2, keepdim=True)).squeeze(3).mT


def _fork_in_turn(near, inside, loss, spec: QuantSpec, width: int):
    """Fork the branches at each of a few inputs and keep the best: integers, moves, losses, and the branch each is of.

    near: wishes (groups, B, R, M); inside: rates (groups, B, B) and 1 / U_jj (groups, B, 1); loss (groups, R, M).
    """
    rates, weights = inside
    integers = moved = near[:, :0]
    parent = torch.arange(near.shape[3], device=near.device).expand(loss.shape)
    for j in range(len(rates[0])):
        wish = near[:, 0]
        nearest = wish.round().clamp_(spec.qmin, spec.qmax)
        other = nearest + torch.where(wish < nearest, -1.0, 1.0)
        fork = torch.cat([nearest, other], 2)
        losses = ((fork - wish.repeat(1, 1, 2)) * weights[:, j, None]).square_() + loss.repeat(1, 1, 2)
        losses.masked_fill_((fork < spec.qmin) | (fork > spec.qmax), torch.inf)
        loss, kept = losses.topk(min(width, losses.shape[2]), dim=2, largest=False)
        source = kept % wish.shape[2]
        integer = fork.gather(2, kept)
        move = (integer - wish.gather(2, source)).unsqueeze(1)
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
    wish = (integers - (integers - optimum / scale[..., None]) @ gram / curvature).mT.contiguous()
    integers = integers.mT.clone(memory_format=torch.contiguous_format)
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
