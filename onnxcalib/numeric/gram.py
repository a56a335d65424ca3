"""Second moments of a linear layer's input and target: all that its squared error depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class Moments:
    """Centred second moments of one layer, by group.

    gram (groups, K, K): covariance of the quantized input columns; cross (groups, C, K): covariance of the targets with
    them; input_mean (groups, K), target_mean (groups, C); columns: how many were seen.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    input_mean: torch.Tensor
    target_mean: torch.Tensor
    columns: int


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

    def centre(self) -> Moments:
        """The moments about the means: what is left of the least squares once the bias is solved in closed form."""
        gram, cross, inputs, targets = (s / self._columns for s in self._sums)
        gram = gram - inputs.unsqueeze(2) * inputs.unsqueeze(1)
        cross = cross - targets.unsqueeze(2) * inputs.unsqueeze(1)
        return Moments(gram, cross, inputs, targets, self._columns)


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution over the trailing axes: ``pads`` are begins then ends, as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1


def unfold(x: torch.Tensor, window: Window, positions: int | None, generator: torch.Generator):
    """Input columns of a convolution at all or at ``positions`` random places an image.

    x (N, C, *spatial) -> columns (groups, C / groups * prod(kernel), N * P) in the weight's own order, and the places
    as a flat index into the output's spatial axes.
    """
    rank = len(window.kernel)
    pads = [p for d in reversed(range(rank)) for p in (window.pads[d], window.pads[d + rank])]
    view = functional.pad(x, pads) if any(pads) else x
    for d in range(rank):
        span = (window.kernel[d] - 1) * window.dilations[d] + 1
        view = view.unfold(2 + d, span, window.strides[d])[..., :: window.dilations[d]]
    places = view.shape[2 : 2 + rank]
    total = int(torch.tensor(places).prod())
    flat = torch.arange(total)
    if positions is not None and positions < total:
        flat = torch.randperm(total, generator=generator)[:positions].sort().values
    index = torch.unravel_index(flat, places)
    columns = view[(slice(None), slice(None), *index)]
    count, channels = x.shape[:2]
    columns = columns.reshape(count, window.groups, channels // window.groups, len(flat), -1)
    columns = columns.permute(1, 2, 4, 0, 3).reshape(window.groups, -1, count * len(flat))
    return columns, flat


def pick_targets(y: torch.Tensor, flat: torch.Tensor, groups: int) -> torch.Tensor:
    """Targets (groups, C / groups, N * P) of an output (N, C, *spatial) at the places that ``unfold`` chose."""
    count, channels = y.shape[:2]
    picked = y.reshape(count, groups, channels // groups, -1)[..., flat]
    return picked.permute(1, 2, 0, 3).reshape(groups, channels // groups, -1)


def flatten_rows(x: torch.Tensor) -> torch.Tensor:
    """Columns (1, K, rows) of the input or target (..., K) of a Gemm or MatMul."""
    return x.reshape(-1, x.shape[-1]).T.unsqueeze(0)


def sample_columns(total: Sequence[int], wanted: int, samples: int) -> int | None:
    """How many places an image suffice for ``wanted`` columns in all; None for every place."""
    places = 1
    for size in total:
        places *= size
    needed = -(-wanted // max(samples, 1))
    return needed if needed < places else None
