"""A layer's weight as integers and scales of their blocks, which are learned together.

Integers are learned straight-through (Bengio et al. 2013): a position, of which the integer is the nearest, moves by
the gradient of the weight that it stands for. It starts on the side of its integer on which the float weight lies, as
integers were solved for others' sake too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..spec import QuantSpec

# Learning rate of positions, in steps, and of the logarithms of scales: of 2 bits a quarter, of 3 bits an eighth. Where
# integers are solved well, as those of more bits are, higher rates only add noise.
RATE = 0.02
# How far from its integer a position starts at most.
FARTHEST_START = 0.4


class _Spread(torch.autograd.Function):
    """``s clip(round(p), low, high)`` (C, K), with a scale s (C, N) for each block of inputs and positions p (C, K).

    Autograd would keep four tensors of the size of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, scale: torch.Tensor, position: torch.Tensor, low: torch.Tensor, high: torch.Tensor, block: int
    ) -> torch.Tensor:
        ctx.save_for_backward(scale, position, low, high)
        ctx.block = block
        return _multiply(_round(position, low, high, block), scale, block)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scale, position, low, high = ctx.saved_tensors
        integers = _round(position, low, high, ctx.block)
        to_scale = (_part(gradient, ctx.block) * _part(integers, ctx.block)).sum(2)
        return to_scale, _multiply(gradient, scale, ctx.block), None, None, None


def _part(rows: torch.Tensor, block: int) -> torch.Tensor:
    """Rows (C, K) as (C, N, block); the last block is filled up with zeros."""
    missing = -rows.shape[1] % block
    parted: torch.Tensor = (functional.pad(rows, (0, missing)) if missing else rows).unflatten(1, (-1, block))
    return parted


def _multiply(rows: torch.Tensor, scale: torch.Tensor, block: int) -> torch.Tensor:
    """Rows (C, K) times the scales (C, N) of their blocks."""
    product: torch.Tensor = (_part(rows, block) * scale[..., None]).flatten(1)[:, : rows.shape[1]]
    return product


def _round(position: torch.Tensor, low: torch.Tensor, high: torch.Tensor, block: int) -> torch.Tensor:
    """Integers (C, K) within the ends (C, N) of their blocks."""
    rounded = _part(position.round(), block).clamp(low[..., None], high[..., None])
    integers: torch.Tensor = rounded.flatten(1)[:, : position.shape[1]]
    return integers


class LearnedWeight(nn.Module):
    """Gives a layer its weight as ``scale * integers``; a torch parametrization of the float weight.

    The signs of scales stay, and so do zero points. rate: learning rate of both parameters.
    """

    start: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        integers: torch.Tensor,
        scale: torch.Tensor,
        spec: QuantSpec,
        zero: torch.Tensor | None = None,
    ) -> None:
        """weight (C, ...): the float weight; integers of its shape, less their zero points; scale and zero (C, N)."""
        super().__init__()
        self.shape, self.rate, rows = integers.shape, RATE / 2**spec.bits, integers.flatten(1)
        self.block = spec.block or rows.shape[1]
        ends = (torch.full_like(scale, end) - (0 if zero is None else zero) for end in (spec.qmin, spec.qmax))
        for name, values in zip(("start", "low", "high"), (scale, *ends), strict=True):
            self.register_buffer(name, values.float(), persistent=False)
        rows = rows.float()
        beside = weight.flatten(1) / _multiply(torch.ones_like(rows), self.start, self.block) - rows
        self.position = nn.Parameter(rows + beside.nan_to_num_().clamp_(-FARTHEST_START, FARTHEST_START))
        self.log_scale = nn.Parameter(torch.zeros_like(self.start))

    @property
    def scale(self) -> torch.Tensor:
        """(C, N)"""
        return self.start * self.log_scale.exp()

    @property
    def integers(self) -> torch.Tensor:
        """Integers less their zero points, in the weight's shape."""
        return _round(self.position, self.low, self.high, self.block).reshape(self.shape)

    def forward(self, _weight: torch.Tensor) -> torch.Tensor:
        weight: torch.Tensor = _Spread.apply(self.scale, self.position, self.low, self.high, self.block)
        return weight.reshape(self.shape)
