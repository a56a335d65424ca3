"""Rows of integers whose blocks of inputs have a scale each, and may have a zero point each.

``choose_grids`` finds scales, and zero points, for the least error of rounding. ``round_blocks`` rounds weights with
them. ``solve_blocks`` starts from them, and takes turns between three steps, each of which lowers the loss of the rows
(``integer_search``):

1. coordinate descent on the integers (``descent``),
2. all scales of a row refitted at once to its integers (``scale_blocks``),
3. block after block, with all others fixed: its integers are searched anew by GPTQ at scales, and zero points, near
   those it has.

With e the row's errors and A the Gram matrix, a block b whose others are fixed has the loss ``(v_b - s q) A_bb (v_b - s
q)^T`` and a constant, with ``v_b = s q - (e A)_b A_bb^-1``. So step 3 is a small layer of its own.

A symmetric block has one integer more on one side of zero. Where scales may be negative, the better side is chosen:
with 2 or 3 bits the loss is a seventh less, with 4 bits a twelfth (SmolLM2-135M, blocks of 64 and 128).

Shapes: R rows (output channels), K inputs, N blocks a row; (1, R, K) as elsewhere, as such layers have one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from ..spec import QuantSpec
from .descent import Descent
from .gram import divide
from .integer_search import Metric, gptq, search
from .scale_blocks import ScaleBlocks

# Candidate scales, as shares of the scale whose grid ends at the block's largest weight, by the bits: fewer bits clip
# more of the weights.
SHARES = {8: np.linspace(1.0, 0.85, 4), 4: np.linspace(1.0, 0.4, 32), 3: np.linspace(1.0, 0.4, 32)}
TWO_BIT_SHARES = np.geomspace(1.0, 0.2, 40)
# Scales of step 3, as shares of the block's own, and how far zero points move.
NEAR = (0.85, 0.92, 0.97, 1.0, 1.03, 1.08, 1.17)
ZEROS = (0, -1, 1)
# Passes of coordinate descent in a turn, turns at most, and the share of the loss that a turn must save for another.
SWEEPS, TURNS, LEAST_GAIN = 4, 4, 0.003


class Grids(NamedTuple):
    """Scales of blocks (1, R, N), and zero points of that shape or None."""

    scale: torch.Tensor
    zero: torch.Tensor | None

    def take(self, number: int) -> Grids:
        """Those of one block."""
        own = slice(number, number + 1)
        return Grids(self.scale[..., own], None if self.zero is None else self.zero[..., own])

    def expand(self, blocks: ScaleBlocks) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scale and zero point of each input, (1, R, K)."""
        return blocks.expand(self.scale), None if self.zero is None else blocks.expand(self.zero)


@dataclass(frozen=True)
class BlockRows:
    """Losses (1, R), and integers (1, R, K) less their zero points, on ``grids``."""

    loss: torch.Tensor
    integers: torch.Tensor
    grids: Grids


def choose_grids(
    rows: torch.Tensor, spec: QuantSpec, blocks: ScaleBlocks, weights: torch.Tensor | None = None
) -> Grids:
    """The grids of least squared error when rows (1, R, K) are rounded to nearest.

    weights (1, 1, K): each input's error is multiplied by its weight before it is squared.
    """
    work = rows.float()
    low, high = blocks.ends(work)
    best: torch.Tensor | None = None
    found = Grids(low, None)
    for share in _shares(spec):
        for grids in _propose(low * share, high * share, spec):
            scale, zero = grids.expand(blocks)
            levels = _round(work, scale, zero, spec)
            error = levels.mul_(scale).sub_(work)
            loss = blocks.sum((error if weights is None else error.mul_(weights)).square_())
            if best is None:
                best, found = loss, grids
                continue
            better = loss < best
            best = torch.where(better, loss, best)
            found = _take_better(better, grids, found)
    return Grids(found.scale.double(), None if found.zero is None else found.zero.double())


def _shares(spec: QuantSpec) -> list[float]:
    shares: list[float] = SHARES.get(spec.bits, TWO_BIT_SHARES).tolist()
    return shares


def _propose(low: torch.Tensor, high: torch.Tensor, spec: QuantSpec) -> list[Grids]:
    """The grids that reach from low to high, which are on both sides of zero."""
    tiny = torch.finfo(torch.float32).tiny
    if spec.symmetric:
        scale = (torch.maximum(high, -low) / spec.qmax).clamp_min(tiny)
        return [Grids(scale, None), *([Grids(-scale, None)] if spec.signed_scale else [])]
    scale = ((high - low) / (spec.qmax - spec.qmin)).clamp_min(tiny)
    return [Grids(scale, (spec.qmin - low / scale).round_().clamp_(spec.qmin, spec.qmax))]


def _take_better(better: torch.Tensor, new: Grids, old: Grids) -> Grids:
    zero = None if new.zero is None or old.zero is None else torch.where(better, new.zero, old.zero)
    return Grids(torch.where(better, new.scale, old.scale), zero)


def _round(rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, spec: QuantSpec) -> torch.Tensor:
    """Integers less their zero points."""
    if zero is None:
        return (rows / scale).round_().clamp_(spec.qmin, spec.qmax)
    return (rows / scale).round_().clamp_(spec.qmin - zero, spec.qmax - zero)


def round_blocks(weight: torch.Tensor, spec: QuantSpec, blocks: ScaleBlocks) -> tuple[torch.Tensor, Grids]:
    """Integers (1, R, K) of rounded weights, less their zero points, and grids of the least squared error."""
    grids = choose_grids(weight, spec, blocks)
    return _round(weight, *grids.expand(blocks), spec), grids


def solve_blocks(metric: Metric, optimum: torch.Tensor, spec: QuantSpec, blocks: ScaleBlocks, width: int) -> BlockRows:
    """Integers and grids near the real-valued optimum (1, R, K); width: branches of the search."""
    grids = choose_grids(optimum, spec, blocks, metric.upper.diagonal(dim1=1, dim2=2).unsqueeze(1))
    scale, zero = grids.expand(blocks)
    integers = search(metric, optimum, scale, spec, width=width, zero=zero).double()
    best: BlockRows | None = None
    for turn in range(TURNS + 1):
        if turn:
            grids = grids._replace(scale=blocks.refit(metric.gram, optimum, integers, grids.scale))
            integers, grids = _search_blocks(metric.gram, optimum, (integers, grids), spec, blocks)
        integers, loss = _descend(metric, optimum, (integers, grids), spec, blocks)
        before, best = best, _keep_less(best, BlockRows(loss, integers, grids))
        if before is not None and float(best.loss.sum()) > (1 - LEAST_GAIN) * float(before.loss.sum()):
            break
    assert best is not None
    return best


def _descend(
    metric: Metric, optimum: torch.Tensor, start: tuple[torch.Tensor, Grids], spec: QuantSpec, blocks: ScaleBlocks
) -> tuple[torch.Tensor, torch.Tensor]:
    integers, grids = start
    scale, zero = grids.expand(blocks)
    descent = Descent(metric, optimum, integers, scale, spec, zero=zero)
    for _ in range(SWEEPS):
        if not descent.sweep():
            break
    return descent.integers().double(), descent.loss()


def _keep_less(best: BlockRows | None, new: BlockRows) -> BlockRows:
    """The rows of less loss of both."""
    if best is None:
        return new
    better = new.loss < best.loss
    grids = _take_better(better[..., None], new.grids, best.grids)
    return BlockRows(
        torch.where(better, new.loss, best.loss), torch.where(better[..., None], new.integers, best.integers), grids
    )


def _search_blocks(
    gram: torch.Tensor, optimum: torch.Tensor, start: tuple[torch.Tensor, Grids], spec: QuantSpec, blocks: ScaleBlocks
) -> tuple[torch.Tensor, Grids]:
    """Step 3: block after block, integers and grid of least loss among those tried, and its own."""
    integers, grids = start
    scale, _ = grids.expand(blocks)
    values = (integers * scale).to(gram)
    gradient = (values - optimum.to(gram)) @ gram
    integers, found = integers.clone(), Grids(grids.scale.clone(), None if grids.zero is None else grids.zero.clone())
    for number in range(blocks.count):
        own = (blocks.numbers[0] == number).nonzero().flatten()
        part = gram[:, own][:, :, own]
        metric = Metric.of(part)
        step = divide(gradient[..., own], metric.upper, upper=True) / metric.power[..., None]
        before = (step * gradient[..., own]).sum(2, dtype=torch.float64)
        goal = values[..., own] - step
        tried = _try_near(metric, goal.double(), grids, number, spec)
        better = tried.loss < before
        new = torch.where(better[..., None], tried.integers, integers[..., own])
        chosen = _take_better(better[..., None], tried.grids, found.take(number))
        integers[..., own] = new
        found.scale[..., number : number + 1] = chosen.scale
        if found.zero is not None and chosen.zero is not None:
            found.zero[..., number : number + 1] = chosen.zero
        changed = (new * chosen.scale).to(gram)
        gradient += (changed - values[..., own]) @ gram[:, own]
        values[..., own] = changed
    return integers, found


def _try_near(metric: Metric, goal: torch.Tensor, grids: Grids, number: int, spec: QuantSpec) -> BlockRows:
    """GPTQ of one block (1, R, B) at grids near those it has: the best of each row."""
    rows = goal.shape[1]
    near = [(share, move) for share in NEAR for move in (ZEROS if grids.zero is not None else ZEROS[:1])]
    scale = torch.cat([grids.scale[..., number] * share for share, _ in near], 1)
    zero = None
    if grids.zero is not None:
        own = grids.zero[..., number]
        zero = torch.cat([(own + move).clamp_(spec.qmin, spec.qmax) for _, move in near], 1)
    inputs = None if zero is None else zero[..., None].expand(-1, -1, goal.shape[2])
    integers, loss = gptq(metric, goal.repeat(1, len(near), 1), scale, spec, inputs)
    best = loss.unflatten(1, (len(near), rows)).argmin(1, keepdim=True)
    chosen = (best * rows + torch.arange(rows, device=best.device)).squeeze(1)
    return BlockRows(
        loss.gather(1, chosen),
        integers.double().gather(1, chosen[..., None].expand(-1, -1, goal.shape[2])),
        Grids(scale.gather(1, chosen)[..., None], None if zero is None else zero.gather(1, chosen)[..., None]),
    )
