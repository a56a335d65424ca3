"""What the integers of a layer add to the squared error of its outputs, by rounding alone and as they were solved.

With the moments of ``gram``, the float weight W and a quantized weight V = W + D, each with its best bias,

    E |y - V x - b_V|^2 - E |y - W x - b_W|^2 = tr(D A D^T) - 2 tr(D (C - W A)^T).

It is below zero where V also makes up for the error of the quantized input x.

Shapes: G groups, C output channels and K inputs a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .prior import Equations

# Bytes in float32 of channels whose errors are found at once.
STRIP_BYTES = 2**24


class AddedErrors(NamedTuple):
    """For each channel (G, C), in float64, what two weights add. power: variance of the float weight's outputs."""

    rounded: torch.Tensor
    solved: torch.Tensor
    power: torch.Tensor

    def take(self, channels: slice) -> AddedErrors:
        """Those of some of the channels."""
        return AddedErrors(*(each[:, channels] for each in self))

    @classmethod
    def join(cls, parts: Sequence[AddedErrors]) -> AddedErrors:
        """Those of the channels of all parts."""
        return cls(*(torch.cat(each, 1) for each in zip(*parts, strict=True)))

    def regroup(self, groups: int, channels: int) -> AddedErrors:
        """The same channels, in this order, as those of so many groups."""
        return AddedErrors(*(each.reshape(groups, channels) for each in self))

    def cpu(self) -> AddedErrors:
        """The same in the memory that NumPy reads."""
        return AddedErrors(*(each.cpu() for each in self))

    def shares(self) -> tuple[float, float] | None:
        """What the integers add by rounding alone and as solved, of the power; None of a layer that gives constants."""
        rounded, solved, power = (float(each.sum()) for each in self)
        return (rounded / power, solved / power) if power > 0 else None


def measure_added(
    equations: Equations, weight: torch.Tensor, rounded: torch.Tensor, solved: torch.Tensor
) -> AddedErrors:
    """weight, rounded, solved: the float weight and what was made of it, (G, C, K)."""
    groups, channels, inputs = weight.shape
    at_once = max(1, STRIP_BYTES // (4 * groups * inputs))
    parts = []
    for start in range(0, channels, at_once):
        own = slice(start, start + at_once)
        whole, slope = weight[:, own].float(), equations.slope[:, own]
        changes = [(each[:, own] - weight[:, own]).float() for each in (rounded, solved)]
        found = [_sum(each @ equations.gram - 2 * slope, each) for each in changes]
        parts.append((*found, _sum(whole @ equations.gram, whole)))
    return AddedErrors(*(torch.cat(each, 1) * equations.unit for each in zip(*parts, strict=True)))


def _sum(products: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (products * rows).sum(2, dtype=torch.float64)
