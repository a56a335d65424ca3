"""Second moments of a linear layer's input and target: all that its squared error depends on.

A column is one input vector of the layer with the target vector that belongs to it. A Gemm or MatMul has one for every
row of its input, a convolution one for every position of its output (a pixel of an image), of every sample.

Shapes: G groups, K inputs and C output channels a group, P columns, N samples, M probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional, grad

from .products import list_tiles, multiply, stays_integer

# Columns wait until they take so many bytes, and are multiplied together: adding K^2 sums costs more than few columns.
WAITING_BYTES = 2**24


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer about the means, in float64.

    gram A (G, K, K): covariance of the quantized inputs; cross C (G, C, K): covariance of the targets with them;
    input_mean (G, K), target_mean (G, C); columns: how many they are taken over.

    of_input: in place of targets are float inputs x_f, of which the targets are ``W x_f`` with the float weight W:
    cross (G, K, K) and target_mean (G, K) are then theirs.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    input_mean: torch.Tensor
    target_mean: torch.Tensor
    columns: int
    of_input: bool = False

    @property
    def seen_finite(self) -> bool:
        """Whether all inputs and targets are finite; one that is not makes its mean so."""
        return bool(self.input_mean.isfinite().all() and self.target_mean.isfinite().all())

    @property
    def finite(self) -> bool:
        """Whether the covariances are finite; products of large finite values may overflow."""
        return bool(self.gram.sum().isfinite() and self.cross.sum().isfinite())  # sums of float32's fit float64

    def pooled(self, other: Moments) -> Moments:
        """The moments of these columns and the other's, by the pairwise update of Chan, Golub and LeVeque (1979)."""
        count = self.columns + other.columns
        mine, theirs = self.columns / count, other.columns / count
        inputs, targets = other.input_mean - self.input_mean, other.target_mean - self.target_mean
        between = (mine * theirs) * inputs.unsqueeze(1)
        # In place, as a Gram matrix may have hundreds of megabytes.
        gram = (mine * self.gram).add_(other.gram, alpha=theirs).addcmul_(inputs.unsqueeze(2), between)
        cross = (mine * self.cross).add_(other.cross, alpha=theirs).addcmul_(targets.unsqueeze(2), between)
        means = self.input_mean + theirs * inputs, self.target_mean + theirs * targets
        return Moments(gram, cross, *means, count, self.of_input)

    def about_zero(self) -> Moments:
        """The moments about zero, with means of zero: the error of a layer that cannot have a bias depends on these."""
        inputs, targets = self.input_mean, self.target_mean
        return Moments(
            self.gram + inputs.unsqueeze(2) * inputs.unsqueeze(1),
            self.cross + targets.unsqueeze(2) * inputs.unsqueeze(1),
            torch.zeros_like(inputs),
            torch.zeros_like(targets),
            self.columns,
            self.of_input,
        )

    def means_of_targets(self, weight: torch.Tensor) -> torch.Tensor:
        """The means (G, C) of the targets of the float weight (G, C, K)."""
        return (weight @ self.target_mean[..., None]).squeeze(-1) if self.of_input else self.target_mean


def factorize(gram: torch.Tensor) -> torch.Tensor:
    """The lower Cholesky factor (G, K, K) of a positive definite matrix, in its type.

    A matrix that is not positive definite raises.
    """
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(gram)
    if failed.any():  # maybe by float32's rounding alone
        factor = torch.linalg.cholesky(gram.double()).to(gram)
    return factor


def divide(rows: torch.Tensor, factor: torch.Tensor, *, upper: bool = False) -> torch.Tensor:
    """X (G, R, K) of ``X F F^T = rows`` for a lower, or an upper, triangular F (G, K, K)."""
    half = torch.linalg.solve_triangular(factor.mT, rows, upper=not upper, left=False)
    found: torch.Tensor = torch.linalg.solve_triangular(factor, half, upper=upper, left=False)
    return found


def join_groups(moments: Moments) -> Moments:
    """The moments (1, G K, ...) of G groups whose channels of the same number share a row, and a scale.

    Each group is about its own means, so that its channels have biases of their own: target_mean is 0 here.
    """
    groups, channels, inputs = moments.cross.shape
    if groups == 1:
        return moments
    cross = moments.cross.transpose(0, 1).reshape(1, channels, groups * inputs)
    zeros = torch.zeros_like(cross[:, :, 0])
    return Moments(torch.block_diag(*moments.gram)[None], cross, torch.zeros_like(cross[:, 0]), zeros, moments.columns)


def bias_of_groups(moments: Moments, weights: torch.Tensor) -> torch.Tensor:
    """The best bias (G, C) of groups whose weights (1, C, G K) are rows in common, see ``join_groups``."""
    groups, channels, inputs = moments.cross.shape
    own = weights.reshape(channels, groups, inputs).transpose(0, 1)
    return moments.target_mean - (own @ moments.input_mean[..., None]).squeeze(-1)


class Unit(NamedTuple):
    """The scale and the zero point of integers that stand for values."""

    scale: float
    zero_point: int


class MomentSum:
    """Accumulates ``sum x x^T`` and ``sum y x^T`` over batches, so that no activation needs to be kept.

    The means of the first columns are subtracted before values are multiplied in float32: else rounding would hide a
    variance that is small beside the mean. Sums are float64. Where the processor multiplies integers, ``sum x x^T`` of
    int8 inputs is exact, and takes a quarter of the time.
    """

    def __init__(self, unit: Unit | None = None) -> None:
        """unit: that of int8 inputs; the moments are those of the values that they stand for."""
        self._unit = unit or Unit(1.0, 0)
        self._shift: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        # Inputs and targets, of which the first ``_waiting`` columns wait to be multiplied. The shift is subtracted
        # already, but not from int8.
        self._buffers: list[torch.Tensor] = []
        self._waiting = 0
        self.columns = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add columns: inputs (G, K, *columns), targets (G, C, *columns); there may be none of them."""
        count = math.prod(inputs.shape[2:])
        if not count:
            return
        both = (inputs, targets)
        if not self._buffers or self._waiting + count > self._buffers[0].shape[2]:
            self._make_room(both, count)
        if not self._shift:
            self._shift = [_choose_shift(x) for x in both]
        for x, shift, buffer in zip(both, self._shift, self._buffers, strict=True):
            into = buffer[:, :, self._waiting : self._waiting + count].unflatten(2, x.shape[2:])
            if buffer.is_floating_point():
                torch.sub(x, shift.reshape(*shift.shape[:2], *[1] * (x.dim() - 2)), out=into)
            else:
                into.copy_(x)
        self._waiting += count
        self.columns += count

    def _make_room(self, both: Sequence[torch.Tensor], count: int) -> None:
        """Empty buffers for ``count`` more columns of such inputs and targets, in these' order of memory."""
        self._multiply()
        if self._buffers and count <= self._buffers[0].shape[2]:
            return
        kinds = [torch.int8 if stays_integer(x) else torch.promote_types(x.dtype, torch.float32) for x in both]
        sizes = [kind.itemsize * len(x) * x.shape[1] for x, kind in zip(both, kinds, strict=True)]
        count = max(count, WAITING_BYTES // sum(sizes))
        self._buffers = [
            x.new_empty((len(x), count, x.shape[1]), dtype=kind).mT
            if x.stride(1) == 1
            else x.new_empty((*x.shape[:2], count), dtype=kind)
            for x, kind in zip(both, kinds, strict=True)
        ]

    def _multiply(self) -> None:
        """Add the products of the columns that wait to the sums."""
        if not self._waiting:
            return
        inputs, targets = (buffer[:, :, : self._waiting] for buffer in self._buffers)
        self._waiting = 0
        products = multiply(inputs, targets)
        if self._sums:
            for total, product in zip(self._sums, products, strict=True):
                total += product
        else:
            self._sums = [product.double() for product in products]

    def merge(self, other: MomentSum) -> None:
        """Add the columns of another sum of the same unit, which must not be used any more. An empty one takes all."""
        other._multiply()
        self._multiply()
        if not self.columns or not other.columns:
            if other.columns:
                self._unit, self._shift, self._sums, self.columns = (
                    other._unit,
                    other._shift,
                    other._sums,
                    other.columns,
                )
            return
        (gram, cross, inputs, targets), count = other._sums, other.columns
        apart = [theirs.double() - mine.double() for theirs, mine in zip(other._shift, self._shift, strict=True)]
        # sum (x + d)(x + d)^T = sum x x^T + s d^T + d (s + n d)^T, with s = sum x; and as much for the targets.
        sums = [s.unsqueeze(2) for s in (inputs, targets)]
        moved = [s + count * d for s, d in zip(sums, apart, strict=True)]
        right = torch.cat((apart[0], moved[0]), 2).mT
        self._sums[0].add_(gram)
        if apart[0].any():  # not of integers
            self._sums[0].baddbmm_(torch.cat((sums[0], apart[0]), 2), right)
        self._sums[1].add_(cross).baddbmm_(torch.cat((sums[1], apart[1]), 2), right)
        self._sums[2] += moved[0].squeeze(2)
        self._sums[3] += moved[1].squeeze(2)
        self.columns += count

    def close(self) -> None:
        """Give up the room for columns that come, which is made again for more of them."""
        self._multiply()
        self._buffers = []

    def __getstate__(self) -> dict[str, Any]:
        self.close()
        return self.__dict__

    def centre(self) -> Moments:
        """The moments about the means, on which the error depends once the bias is solved in closed form.

        At least one column has been added.
        """
        self._multiply()
        gram, cross, inputs, targets = (s / self.columns for s in self._sums)
        for own in list_tiles(gram.shape[1]):
            gram[:, own.stop :, own] = gram[:, own, own.stop :].mT
        gram.addcmul_(inputs.unsqueeze(2), inputs.unsqueeze(1), value=-1)
        cross.addcmul_(targets.unsqueeze(2), inputs.unsqueeze(1), value=-1)
        shift, (scale, zero) = [s.squeeze(2).double() for s in self._shift], self._unit
        means = (inputs + shift[0] - zero).mul_(scale), targets + shift[1]
        return Moments(gram.mul_(scale * scale), cross.mul_(scale), *means, self.columns)


def _choose_shift(x: torch.Tensor) -> torch.Tensor:
    """The means (G, any, 1) of columns, but 0 for those whose products are exact."""
    if stays_integer(x):
        return torch.zeros(1, x.shape[1], 1)
    return (x if x.is_floating_point() else x.float()).flatten(2).mean(2, keepdim=True)


@dataclass(frozen=True)
class Convolution:
    """Geometry of a convolution over the spatial axes; ``pads`` are all the begins, then all the ends, as in ONNX.

    spacing: of a transposed convolution, which is one of stride 1, its kernel turned round, over an input whose values
    stand so far apart, with zeros between them. Its pads are those of that convolution, and may be negative.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int = 1
    spacing: tuple[int, ...] | None = None

    def spread(self, x: torch.Tensor, value: float = 0) -> torch.Tensor:
        """x (..., *spatial) as the kernel meets it: values apart by ``spacing``, and padded, with ``value`` there."""
        if self.spacing is not None:
            lead = x.dim() - len(self.spacing)
            sizes = [(size - 1) * each + 1 for size, each in zip(x.shape[lead:], self.spacing, strict=True)]
            apart = x.new_full((*x.shape[:lead], *sizes), value)
            inside = apart
            for axis, each in enumerate(self.spacing, lead):
                inside = inside[(slice(None),) * axis + (slice(None, None, each),)]
            inside.copy_(x)
            x = apart
        return functional.pad(x, _torch_pads(self), value=value)


def choose_positions(sizes: Sequence[int], wanted: int | None, generator: torch.Generator) -> torch.Tensor:
    """Flat indices (P,) of ``wanted`` random positions in an output of spatial ``sizes``, ascending.

    All positions where ``wanted`` is None, or no less than there are.
    """
    total = math.prod(sizes)
    if wanted is None or wanted >= total:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:wanted].sort().values


def unfold(
    x: torch.Tensor,
    convolution: Convolution,
    positions: torch.Tensor,
    change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    *,
    fill: int = 0,
) -> torch.Tensor:
    """Input columns of a convolution at some positions of its output (im2col), of ``change(x)`` if that is given.

    x (N, channels, *spatial) -> (G, K, positions * N) with K = channels / G * prod(kernel), in the order of the
    weight's own axes. ``change`` works element by element. fill: what padding has.
    """
    patches = _index_patches(convolution, tuple(x.shape[2:]))
    # NumPy's, as torch's own imports sympy, which takes a second.
    where = np.unravel_index(positions.numpy(), patches.shape[: x.dim() - 2])
    index = patches[tuple(torch.from_numpy(axis) for axis in where)].flatten(1).T
    # Values that several patches share are read and changed once; all samples' values then move together.
    needed, position = (t.to(x.device) for t in index.unique(return_inverse=True))
    values = x.flatten(2).index_select(2, needed.clamp_min(0))
    values = values if change is None else change(values)
    padded = bool((needed[:1] < 0).any())
    if padded:
        values.masked_fill_(needed < 0, fill)
    columns = values.permute(1, 2, 0)
    if padded or math.prod(convolution.kernel) > 1:  # otherwise positions read a value each, in their order
        columns = columns.contiguous().index_select(1, position.flatten())
    inputs = x.shape[1] // convolution.groups * math.prod(convolution.kernel)
    return columns.reshape(convolution.groups, inputs, len(positions) * len(x))


@lru_cache(maxsize=1)
def _index_patches(convolution: Convolution, sizes: tuple[int, ...]) -> torch.Tensor:
    """Flat index of the input value under each weight at each position (*output, *kernel); -1 is in the padding."""
    rank = len(sizes)
    view = convolution.spread(torch.arange(math.prod(sizes)).reshape(sizes), -1)
    for d in range(rank):
        span = (convolution.kernel[d] - 1) * convolution.dilations[d] + 1
        view = view.unfold(d, span, convolution.strides[d])[..., :: convolution.dilations[d]]
    return view if convolution.spacing is None else view.flip(tuple(range(rank, 2 * rank)))


def gather_columns(y: torch.Tensor, positions: torch.Tensor, groups: int) -> torch.Tensor:
    """Target columns (G, C, positions * N) of an output (N, G * C, *spatial), in the order of ``unfold``."""
    gathered = y.flatten(2).index_select(2, positions.to(y.device))
    return gathered.permute(1, 2, 0).reshape(groups, y.shape[1] // groups, -1)


def flatten_rows(x: torch.Tensor) -> torch.Tensor:
    """Columns (1, K, P) of the input or target (..., K) of a Gemm or MatMul."""
    return x.reshape(-1, x.shape[-1]).T.unsqueeze(0)


def project(x: torch.Tensor, probes: torch.Tensor, convolution: Convolution | None = None) -> torch.Tensor:
    """Gradient of each probe with respect to a row of the weight, (K, N * M): ``sum_p probe_p x_p`` of each sample.

    x: the input (N, channels, *spatial) of a convolution of one group, or (N, ..., K) of a Gemm or MatMul, for which
    ``convolution`` is None; probes (N, M, positions of the output).
    """
    if convolution is None:
        return (probes @ x.reshape(len(x), -1, x.shape[-1])).permute(2, 0, 1).flatten(1)
    gradient = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}[x.dim() - 2]
    shape = (probes.shape[1], x.shape[1], *convolution.kernel)
    sizes = output_sizes(convolution, x.shape[2:])
    x = convolution.spread(x)
    steps = {"stride": convolution.strides, "dilation": convolution.dilations}
    sums = [gradient(one[None], shape, own.reshape(1, -1, *sizes), **steps) for one, own in zip(x, probes, strict=True)]
    if convolution.spacing is not None:
        sums = [each.flip(tuple(range(2, each.dim()))) for each in sums]
    return torch.cat([each.flatten(1).T for each in sums], 1)


def output_sizes(convolution: Convolution, sizes: Sequence[int]) -> tuple[int, ...]:
    """Spatial sizes of a convolution's output for an input of spatial ``sizes``."""
    rank = len(sizes)
    spans = [(kernel - 1) * each for kernel, each in zip(convolution.kernel, convolution.dilations, strict=True)]
    apart = convolution.spacing or (1,) * rank
    padded = [(sizes[d] - 1) * apart[d] + 1 + convolution.pads[d] + convolution.pads[d + rank] for d in range(rank)]
    return tuple(
        (size - span - 1) // stride + 1 for size, span, stride in zip(padded, spans, convolution.strides, strict=True)
    )


def _torch_pads(convolution: Convolution) -> list[int]:
    """The pads as torch has them: begin and end of the last axis first."""
    rank = len(convolution.kernel)
    return [p for d in reversed(range(rank)) for p in (convolution.pads[d], convolution.pads[d + rank])]
