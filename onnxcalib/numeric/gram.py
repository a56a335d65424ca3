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

import numpy as np
import torch
from torch.nn import functional, grad

# Rows of the Gram matrix that are one matrix product, from the diagonal on. The lower half is copied, not computed.
TILE = 128
# Columns wait until they take so many bytes, and are multiplied together: adding K^2 sums costs more than few columns.
WAITING_BYTES = 2**24


@dataclass(frozen=True)
class Moments:
    """Second moments of one layer about the means, in float64.

    gram A (G, K, K): covariance of the quantized inputs; cross C (G, C, K): covariance of the targets with them;
    input_mean (G, K), target_mean (G, C); columns: how many they are taken over.
    """

    gram: torch.Tensor
    cross: torch.Tensor
    input_mean: torch.Tensor
    target_mean: torch.Tensor
    columns: int

    @property
    def seen_finite(self) -> bool:
        """Whether all inputs and targets are finite; one that is not makes its mean so."""
        return bool(self.input_mean.isfinite().all() and self.target_mean.isfinite().all())

    @property
    def finite(self) -> bool:
        """Whether the covariances are finite; products of large finite values may overflow."""
        return bool(self.gram.isfinite().all() and self.cross.isfinite().all())

    def without(self, part: Moments) -> Moments:
        """The moments of these columns but those of ``part``, which are some of them.

        The pairwise update of Chan, Golub and LeVeque (1979) the other way round.
        """
        count = self.columns - part.columns
        mine, theirs = self.columns / count, part.columns / count
        inputs = (self.input_mean - part.input_mean) * mine
        targets = (self.target_mean - part.target_mean) * mine
        between = theirs / mine * inputs.unsqueeze(1)
        # In place, as a Gram matrix may have hundreds of megabytes.
        gram = (mine * self.gram).add_(part.gram, alpha=-theirs).addcmul_(inputs.unsqueeze(2), between, value=-1)
        cross = (mine * self.cross).add_(part.cross, alpha=-theirs).addcmul_(targets.unsqueeze(2), between, value=-1)
        return Moments(gram, cross, part.input_mean + inputs, part.target_mean + targets, count)

    def about_zero(self) -> Moments:
        """The moments about zero, with means of zero: the error of a layer that cannot have a bias depends on these."""
        inputs, targets = self.input_mean, self.target_mean
        return Moments(
            self.gram + inputs.unsqueeze(2) * inputs.unsqueeze(1),
            self.cross + targets.unsqueeze(2) * inputs.unsqueeze(1),
            torch.zeros_like(inputs),
            torch.zeros_like(targets),
            self.columns,
        )


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


class MomentSum:
    """Accumulates ``sum x x^T`` and ``sum y x^T`` over batches, so that no activation needs to be kept.

    The first batch's means are subtracted before values are multiplied in float32: else rounding would hide a variance
    that is small beside the mean. Sums are float64.
    """

    def __init__(self) -> None:
        self._shift: tuple[torch.Tensor, torch.Tensor] | None = None
        self._sums: list[torch.Tensor] = []
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._bytes = 0
        self.columns = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add columns: inputs (G, K, P), targets (G, C, P); P may be 0. They must not change any more."""
        if not inputs.shape[2]:
            return
        self._waiting.append((inputs, targets))
        self._bytes += inputs.nbytes + targets.nbytes
        self.columns += inputs.shape[2]
        if self._bytes >= WAITING_BYTES:
            self._multiply()

    def _multiply(self) -> None:
        """Add the products of the columns that wait to the sums."""
        inputs, targets = (torch.cat(each, 2) for each in zip(*self._waiting, strict=True))
        self._waiting, self._bytes = [], 0
        if self._shift is None:
            self._shift = (inputs.mean(2, keepdim=True), targets.mean(2, keepdim=True))
        inputs, targets = inputs.sub_(self._shift[0]), targets.sub_(self._shift[1])
        products = (_multiply_upper(inputs), targets @ inputs.mT, inputs.sum(2), targets.sum(2))
        if self._sums:
            for total, product in zip(self._sums, products, strict=True):
                total += product
        else:
            self._sums = [product.double() for product in products]

    def centre(self) -> Moments:
        """The moments about the means, on which the error depends once the bias is solved in closed form.

        At least one column has been added.
        """
        if self._waiting:
            self._multiply()
        assert self._shift is not None
        gram, cross, inputs, targets = (s / self.columns for s in self._sums)
        for own in _tiles(gram.shape[1]):
            gram[:, own.stop :, own] = gram[:, own, own.stop :].mT
        gram.addcmul_(inputs.unsqueeze(2), inputs.unsqueeze(1), value=-1)
        cross.addcmul_(targets.unsqueeze(2), inputs.unsqueeze(1), value=-1)
        shift = [s.squeeze(2).double() for s in self._shift]
        return Moments(gram, cross, inputs + shift[0], targets + shift[1], self.columns)


def _tiles(size: int) -> list[slice]:
    return [slice(start, min(start + TILE, size)) for start in range(0, size, TILE)]


def _multiply_upper(x: torch.Tensor) -> torch.Tensor:
    """``x x^T`` (G, K, K) in the tiles on the diagonal and to their right; zero in the others."""
    size = x.shape[1]
    product = x.new_zeros(len(x), size, size)
    for own in _tiles(size):
        product[:, own, own.start :] = x[:, own] @ x[:, own.start :].mT
    return product


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
) -> torch.Tensor:
    """Input columns of a convolution at some positions of its output (im2col), of ``change(x)`` if that is given.

    x (N, channels, *spatial) -> (G, K, positions * N) with K = channels / G * prod(kernel), in the order of the
    weight's own axes. ``change`` works element by element.
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
        values.masked_fill_(needed < 0, 0)
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
