"""Second moments of a linear layer's input and target: all that its squared error depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Moments:
    """Centred second moments of one layer, by group.

    gram (groups, K, K): covariance of the quantized input columns; cross (groups, C, K): covariance of the targets with
    them; input_mean (groups, K), target_mean (groups, C).
    """

    gram: torch.Tensor
    cross: torch.Tensor
    input_mean: torch.Tensor
    target_mean: torch.Tensor


class MomentSum:
    """Accumulates ``sum x x^T`` and ``sum y x^T`` over batches, in float64, so that no activation needs to be kept."""

    def __init__(self) -> None:
        self._sums: list[torch.Tensor] | None = None
        self._columns = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add columns: inputs (groups, K, P), targets (groups, C, P)."""
        sums = [inputs @ inputs.mT, targets @ inputs.mT, inputs.sum(2), targets.sum(2)]
        sums = [s.double() for s in sums]
        self._sums = sums if self._sums is None else [a.add_(b) for a, b in zip(self._sums, sums, strict=True)]
        self._columns += inputs.shape[2]

    def merge(self, other: MomentSum) -> None:
        """Take in the columns of another sum; it is left as it is."""
        if other._sums is None:
            return
        mine = self._sums
        self._sums = [s.clone() for s in other._sums] if mine is None else [a + b for a, b in zip(mine, other._sums, strict=True)]
        self._columns += other._columns

    @property
    def columns(self) -> int:
        return self._columns

    def centre(self) -> Moments:
        """The moments about the means: what is left of the least squares once the bias is solved in closed form."""
        gram, cross, inputs, targets = (s / self._columns for s in self._sums)
        gram = gram - inputs.unsqueeze(2) * inputs.unsqueeze(1)
        cross = cross - targets.unsqueeze(2) * inputs.unsqueeze(1)
        return Moments(gram, cross, inputs, targets)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution over the trailing axes: ``pads`` are begins then ends, as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1


def choose_places(sizes: Sequence[int], wanted: int | None, generator: torch.Generator) -> torch.Tensor:
    """Flat indices of ``wanted`` random places of an output of spatial ``sizes``; of all where None or too many."""
    total = math.prod(sizes)
    if wanted is None or wanted >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:wanted].sort().values


def unfold(x: torch.Tensor, window: Window, places: torch.Tensor) -> torch.Tensor:
    """Input columns of a convolution at ``places`` of its output.

    x (N, C, *spatial) -> (groups, C / groups * prod(kernel), N * places), inputs in the weight's own order.
    """
    rank = len(window.kernel)
    pads = [p for d in reversed(range(rank)) for p in (window.pads[d], window.pads[d + rank])]
    view = functional.pad(x, pads) if any(pads) else x
    for d in range(rank):
        span = (window.kernel[d] - 1) * window.dilations[d] + 1
        view = view.unfold(2 + d, span, window.strides[d])[..., :: window.dilations[d]]
    index = torch.unravel_index(places, view.shape[2 : 2 + rank])
    columns = view[(slice(None), slice(None), *index)]
    count, channels = x.shape[:2]
    columns = columns.reshape(count, window.groups, channels // window.groups, len(places), -1)
    return columns.permute(1, 2, 4, 0, 3).reshape(window.groups, -1, count * len(places))


def pick(y: torch.Tensor, places: torch.Tensor, groups: int) -> torch.Tensor:
    """Columns (groups, C / groups, N * places) of an output (N, C, *spatial)."""
    count, channels = y.shape[:2]
    picked = y.reshape(count, groups, channels // groups, -1)[..., places]
    return picked.permute(1, 2, 0, 3).reshape(groups, channels // groups, -1)


def flatten_rows(x: torch.Tensor) -> torch.Tensor:
    """Columns (1, K, rows) of the input or target (..., K) of a Gemm or MatMul."""
    return x.reshape(-1, x.shape[-1]).T.unsqueeze(0)
