"""Candidate grids of rows, and what rounding to nearest on each of them loses.

Shapes: G groups, R rows (output channels), K inputs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..spec import QuantSpec
from .integer_search import round_from
from .pairs import keep_pairs, pair_sums
from .rounding import next_power

# Candidate scales, as shares of the scale whose grid ends at the largest weight.
FEW_BIT_SHARES = torch.linspace(1.0, 0.4, 32, dtype=torch.float64)
FEWEST_BIT_SHARES = torch.from_numpy(np.geomspace(1.0, 0.2, 40))
EIGHT_BIT_SHARES = torch.linspace(1.0, 0.85, 4, dtype=torch.float64)
# One scale for all rows may cut the largest weights of a few.
ONE_SCALE_SHARES = torch.from_numpy(np.geomspace(1.0, 0.1, 24))
# Of the least power of two whose grid holds the largest weight.
POWER_SHARES = torch.tensor([1, 1 / 2, 1 / 4, 1 / 8], dtype=torch.float64)


class RowGrids(NamedTuple):
    """Grids of rows: scales (candidates, G, R), shares of the first in all rows, and zero points of that shape."""

    scale: torch.Tensor
    zero: torch.Tensor | None

    def take(self, numbers: torch.Tensor) -> RowGrids:
        """Those of these numbers (chosen, G, R) for each row."""
        return RowGrids(self.scale.gather(0, numbers), None if self.zero is None else self.zero.gather(0, numbers))


def list_grids(rows: torch.Tensor, spec: QuantSpec) -> RowGrids:
    """Candidate grids of rows; scales are shares of the one at which no weight of the row, or of any, is clipped.

    With signed scales each is there with both signs, as a grid has one integer more below zero than above, and with
    half steps once more for a zero point of -1/2.
    With a pair_limit no pair's sum may be clipped at that scale either; pairs are neighbours in ``rows``.
    """
    largest = rows.abs().amax(2).clamp_min(torch.finfo(torch.float32).tiny * spec.qmax) / spec.qmax
    if spec.pair_limit is not None:
        largest = torch.maximum(largest, pair_sums(rows).amax(2) / spec.pair_limit)
    largest = largest if spec.axis is not None else largest.amax().expand(largest.shape)
    scales = _allow(_shares(spec).to(largest.device)[:, None, None] * largest, spec)
    signed = torch.cat([scales, -scales]) if spec.signed_scale else scales
    if not spec.half_steps:
        return RowGrids(signed, None)
    return RowGrids(torch.cat([signed, scales]), torch.cat([torch.zeros_like(signed), torch.full_like(scales, -0.5)]))


def _allow(scale: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """The scale, raised to a power of two where the spec asks for these."""
    return torch.from_numpy(next_power(scale.cpu().numpy())).to(scale.device) if spec.power_of_two else scale


def _shares(spec: QuantSpec) -> torch.Tensor:
    if spec.power_of_two:
        return POWER_SHARES
    if spec.axis is None:
        return ONE_SCALE_SHARES
    if spec.bits == 8:
        return EIGHT_BIT_SHARES
    return FEW_BIT_SHARES if spec.bits == 4 else FEWEST_BIT_SHARES


def measure_rounding(
    rows: torch.Tensor, candidates: RowGrids, spec: QuantSpec, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """The squared error (candidates, G, R) of rounding to nearest on each candidate.

    Work is done in float32. Each input's error is multiplied by its weight, if it has one, before it is squared.
    """
    largest = candidates.scale[0]
    goal = (rows / largest[..., None]).float()
    shares = (candidates.scale[:, 0, 0] / largest[0, 0]).tolist()
    zeros = [0.0] * len(shares) if candidates.zero is None else candidates.zero[:, 0, 0].tolist()
    losses = []
    for share, zero in zip(shares, zeros, strict=True):
        levels = round_from(goal / share, zero, spec).clamp_(spec.qmin - zero, spec.qmax - zero)
        error = keep_pairs(levels, spec.pair_limit).mul_(share).sub_(goal)
        error = (error if weights is None else error.mul_(weights)).square_()
        losses.append(error.sum(2))
    return torch.stack(losses).double() * largest.square()
