"""Second moments of a linear layer's input and target: all that its squared error depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional, grad

# Inputs whose products with themselves and those behind them are one matrix product: the lower half is not computed.
BLOCK = 128


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

    @property
    def seen_finite(self) -> bool:
        """Whether all values that were seen are finite: means of what is not are not."""
        return bool(self.input_mean.isfinite().all() and self.target_mean.isfinite().all())

    @property
    def finite(self) -> bool:
        """Whether their products are finite too, which those of large values need not be."""
        return bool(self.gram.isfinite().all() and self.cross.isfinite().all())

    def pool(self, other: Moments) -> Moments:
        """The moments of both sets of columns together (Chan et al. 1979)."""
        total = self.columns + other.columns
        mine, theirs = self.columns / total, other.columns / total
        inputs = other.input_mean - self.input_mean
        targets = other.target_mean - self.target_mean
        between = mine * theirs * inputs.unsqueeze(1)
        # In place, as a Gram matrix may have hundreds of megabytes.
        gram = (mine * self.gram).add_(other.gram, alpha=theirs).addcmul_(inputs.unsqueeze(2), between)
        cross = (mine * self.cross).add_(other.cross, alpha=theirs).addcmul_(targets.unsqueeze(2), between)
        return Moments(gram, cross, self.input_mean + theirs * inputs, self.target_mean + theirs * targets, total)

    def about_zero(self) -> Moments:
        """The moments about zero, on which a layer without a bias depends."""
        inputs, targets = self.input_mean, self.target_mean
        return Moments(
            self.gram + inputs.unsqueeze(2) * inputs.unsqueeze(1),
            self.cross + targets.unsqueeze(2) * inputs.unsqueeze(1),
            torch.zeros_like(inputs),
            torch.zeros_like(targets),
            self.columns,
        )


class MomentSum:
    """Accumulates ``sum x x^T`` and ``sum y x^T`` over batches, so that no activation needs to be kept.

    Products are float32 about the first batch's means (their rounding would drown a variance that is small beside the
    mean), sums are float64.
    """

    def __init__(self) -> None:
        self._shift: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sums: list[torch.Tensor] = []
        self.columns = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add columns, maybe none: inputs (groups, K, P), targets (groups, C, P)."""
        if not inputs.shape[2]:
            return
        if self._shift is None:
            self._shift = (inputs.mean(2, keepdim=True), targets.mean(2, keepdim=True))
        inputs, targets = inputs - self._shift[0], targets - self._shift[1]
        products = (_multiply_upper(inputs), targets @ inputs.mT, inputs.sum(2), targets.sum(2))
        if self._sums:
            for total, product in zip(self._sums, products, strict=True):
                total += product
        else:
            self._sums = [product.double() for product in products]
        self.columns += inputs.shape[2]

    def centre(self) -> Moments:
        """The moments about the means: what is left of the least squares once the bias is solved in closed form."""
        gram, cross, inputs, targets = (s / self.columns for s in self._sums)
        for own in _blocks(gram.shape[1]):
            gram[:, own.stop :, own] = gram[:, own, own.stop :].mT
        gram.addcmul_(inputs.unsqueeze(2), inputs.unsqueeze(1), value=-1)
        cross.addcmul_(targets.unsqueeze(2), inputs.unsqueeze(1), value=-1)
        shift = [s.squeeze(2).double() for s in self._shift]
        return Moments(gram, cross, inputs + shift[0], targets + shift[1], self.columns)


def _blocks(size: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]


def _multiply_upper(x: torch.Tensor) -> torch.Tensor:
    """``x x^T`` (groups, K, K) in the blocks on the diagonal and to their right; zero in the others."""
    size = x.shape[1]
    product = x.new_zeros(len(x), size, size)
    for own in _blocks(size):
        product[:, own, own.start :] = x[:, own] @ x[:, own.start :].mT
    return product


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


def unfold(
    x: torch.Tensor, window: Window, places: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> torch.Tensor:
    """Input columns of a convolution at ``places`` of its output, of ``change(x)`` if that is given.

    x (N, C, *spatial) -> (groups, C / groups * prod(kernel), places * N), inputs in the weight's own order. Each value
    is read and changed once, however often it comes; those of all samples are then moved together.
    """
    windows = _view_windows(window, tuple(x.shape[2:]))
    index = windows[torch.unravel_index(places, windows.shape[: x.dim() - 2])].flatten(1).T
    needed, position = (t.to(x.device) for t in index.unique(return_inverse=True))
    values = x.flatten(2).index_select(2, needed.clamp_min(0))
    values = values if change is None else change(values)
    values.masked_fill_(needed < 0, 0)
    columns = values.permute(1, 2, 0).contiguous().index_select(1, position.flatten())
    return columns.reshape(window.groups, -1, len(places) * len(x))


@lru_cache(maxsize=1)
def _view_windows(window: Window, sizes: tuple[int, ...]) -> torch.Tensor:
    """A view (*places, *kernel) of flat indices: the input value under each weight at a place, -1 in the padding."""
    rank = len(sizes)
    view = functional.pad(torch.arange(math.prod(sizes)).reshape(sizes), _torch_pads(window), value=-1)
    for d in range(rank):
        span = (window.kernel[d] - 1) * window.dilations[d] + 1
        view = view.unfold(d, span, window.strides[d])[..., :: window.dilations[d]]
    return view


def pick(y: torch.Tensor, places: torch.Tensor, groups: int) -> torch.Tensor:
    """Columns (groups, C / groups, places * N) of an output (N, C, *spatial)."""
    picked = y.flatten(2).index_select(2, places.to(y.device))
    return picked.permute(1, 2, 0).reshape(groups, y.shape[1] // groups, -1)


def flatten_rows(x: torch.Tensor) -> torch.Tensor:
    """Columns (1, K, rows) of the input or target (..., K) of a Gemm or MatMul."""
    return x.reshape(-1, x.shape[-1]).T.unsqueeze(0)


def project(x: torch.Tensor, probes: torch.Tensor, window: Window | None = None) -> torch.Tensor:
    """What a layer's weights would get as gradients: its columns, summed over each sample's places under its probes.

    x: the input (N, C, *spatial) of a convolution of one group, or (N, ..., K) where ``window`` is None; probes
    (N, M, P), P the places of the output. Gives (K, N * M).
    """
    if window is None:
        return (probes @ x.reshape(len(x), -1, x.shape[-1])).permute(2, 0, 1).flatten(1)
    gradient = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}[x.dim() - 2]
    shape = (probes.shape[1], x.shape[1], *window.kernel)
    places = count_places(window, x.shape[2:])
    x = functional.pad(x, _torch_pads(window))
    steps = {"stride": window.strides, "dilation": window.dilations}
    sums = [
        gradient(one[None], shape, own.reshape(1, -1, *places), **steps) for one, own in zip(x, probes, strict=True)
    ]
    return torch.cat([each.flatten(1).T for each in sums], 1)


def count_places(window: Window, sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes of a convolution's output on an input of spatial ``sizes``."""
    rank = len(sizes)
    spans = [(kernel - 1) * step for kernel, step in zip(window.kernel, window.dilations, strict=True)]
    padded = [sizes[d] + window.pads[d] + window.pads[d + rank] for d in range(rank)]
    return tuple(
        (size - span - 1) // stride + 1 for size, span, stride in zip(padded, spans, window.strides, strict=True)
    )


def _torch_pads(window: Window) -> list[int]:
    """The pads as torch has them: begin and end of the last axis first."""
    rank = len(window.kernel)
    return [p for d in reversed(range(rank)) for p in (window.pads[d], window.pads[d + rank])]
