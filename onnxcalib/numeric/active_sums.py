"""Moments of a layer in front of a Relu or a Clip, of which outputs count where these let them through.

What a Relu makes 0 anyway, or a Clip its end, need not be met. An output whose float value lies outside of the active
range counts ASIDE, and any other one. The range is wider than that of the activation function by MARGIN, as the
quantized value is not the float one.

Each output channel has moments of its own, as other columns count in it: a layer of G groups of C channels gives those
of G C groups of one channel.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from .gram import Moments, Unit

# What an output counts outside of the active range. It keeps what is far outside from coming in.
ASIDE = 0.1
# How much wider the active range is on each side, as a share of it.
MARGIN = 0.15
# Columns of depthwise layers wait until they take so many bytes, and are multiplied together.
WAITING_BYTES = 2**26
ALL = slice(None)


class ColumnSum(Protocol):
    """What sums columns up to moments: ``MomentSum``, and in front of an activation function the two of this module."""

    columns: int

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None: ...

    def merge(self, other: Any) -> None: ...

    def close(self) -> None: ...

    def centre(self) -> Moments: ...


class ChannelSum(ColumnSum, Protocol):
    """Sums whose channels have moments of their own, which are made for some of them at a time."""

    def seen_finite(self) -> bool: ...

    def centre(self, channels: slice = ALL) -> Moments: ...


class ActiveSum:
    """Accumulates weighted ``sum x x^T`` and ``sum y x^T`` of a depthwise layer's groups of one channel.

    The means of the first columns are subtracted before values are multiplied in float32. Sums are float64.
    """

    def __init__(self, end: float, unit: Unit | None = None) -> None:
        """end: of the active range, which begins at 0. unit: that of int8 inputs, which stand for values."""
        self._end, self._unit = end, unit
        self._shift: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.columns = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add columns: inputs (G, K, *columns), targets (G, 1, *columns); there may be none of them."""
        x, y = _read(inputs.flatten(2), self._unit), targets.flatten(2).float()
        if not x.shape[2]:
            return
        if not self._shift:
            self._shift = [x.mean(2), y.mean(2)]
        self._waiting.append((x, y))
        self.columns += x.shape[2]
        if sum(each.nbytes for pair in self._waiting for each in pair) > WAITING_BYTES:
            self.close()

    def merge(self, other: ActiveSum) -> None:
        """Add the columns of another sum of the same layer. An empty one takes all."""
        self.close()
        other.close()
        if not self.columns or not other.columns:
            if other.columns:
                self._shift, self._sums, self.columns = other._shift, other._sums, other.columns
            return
        gram, cross, inputs, targets, count = other._sums
        x, y = (theirs.double() - mine.double() for theirs, mine in zip(other._shift, self._shift, strict=True))
        # sum w (x + d)(x + d)^T = sum w x x^T + s d^T + d (s + n d)^T, with s = sum w x; and as much for the targets.
        moved = inputs + count * x
        added = (
            gram + inputs[:, :, None] * x[:, None] + x[:, :, None] * moved[:, None],
            cross + targets[..., None] * x[:, None] + y[..., None] * moved[:, None],
            moved,
            targets + count * y,
            count,
        )
        self._sums = [mine + theirs for mine, theirs in zip(self._sums, added, strict=True)]
        self.columns += other.columns

    def close(self) -> None:
        """Add the products of the columns that wait to the sums."""
        if not self._waiting:
            return
        x, y = (torch.cat(each, 2) for each in zip(*self._waiting, strict=True))
        self._waiting = []
        weights = torch.where(_is_active(y, self._end), 1.0, ASIDE)
        x, y = (each - shift[..., None] for each, shift in zip((x, y), self._shift, strict=True))
        weighed, goals = x * weights, y * weights
        sums = [weighed @ x.mT, goals @ x.mT, weighed.sum(2), goals.sum(2), weights.sum(2)]
        if self._sums:
            for total, own in zip(self._sums, sums, strict=True):
                total += own
        else:
            self._sums = [each.double() for each in sums]

    def seen_finite(self) -> bool:
        """Whether all inputs and targets are finite. At least one column has been added."""
        self.close()
        return all(bool(each.isfinite().all()) for each in self._sums[2:4])

    def centre(self, channels: slice = ALL) -> Moments:
        """The moments of channels about the weighted means. At least one column has been added."""
        self.close()
        shift = [each[channels] for each in self._shift]
        return _centre([each[channels] for each in self._sums], shift, self.columns)


class ActiveColumns:
    """Keeps the columns of a layer of one group: the Gram matrices of all channels may be many times as large."""

    def __init__(self, end: float, unit: Unit | None = None) -> None:
        """As of ``ActiveSum``."""
        self._end, self._unit = end, unit
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # inputs (columns, K), targets (C, columns)
        # Inputs less their means, as float32, and the sum of their products.
        self._inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self.columns = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add columns: inputs (1, K, *columns), targets (1, C, *columns); there may be none of them."""
        x, y = inputs[0].flatten(1), targets[0].flatten(1)
        if x.shape[1]:
            self._kept.append((x.T.contiguous(), y.float().contiguous()))
            self.columns += x.shape[1]

    def merge(self, other: ActiveColumns) -> None:
        """Add the columns of another one of the same layer."""
        self._kept += other._kept
        self.columns += other.columns

    def close(self) -> None:
        """Put all columns together."""
        if len(self._kept) > 1:
            inputs, targets = zip(*self._kept, strict=True)
            self._kept = [(torch.cat(inputs), torch.cat(targets, 1))]

    def seen_finite(self) -> bool:
        """Whether all inputs and targets are finite. At least one column has been added."""
        return all(bool(each.isfinite().all()) for pair in self._kept for each in pair)

    def centre(self, channels: slice = ALL) -> Moments:
        """The moments of channels about the weighted means. At least one column has been added."""
        self.close()
        inputs, targets = self._kept[0]
        if self._inputs is None:
            x = _read(inputs, self._unit)
            mean = x.mean(0)
            x = x - mean
            self._inputs = x, mean, x.T @ x
        x, mean, whole = self._inputs
        y = targets[channels]
        active, shift = _is_active(y, self._end), y.mean(1, keepdim=True)
        weights = torch.where(active, 1.0, ASIDE)
        gram = torch.stack([_sum_active(x, whole, own) for own in active])
        goals = (y - shift) * weights
        sums = [gram, (goals @ x)[:, None], weights @ x, goals.sum(1, keepdim=True), weights.sum(1, keepdim=True)]
        return _centre([each.double() for each in sums], [mean.expand(len(y), -1), shift], self.columns)


def _sum_active(x: torch.Tensor, whole: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Weighted ``sum x x^T`` of inputs (columns, K), of which ``whole`` is the sum without weights; active: of each."""
    places = active.nonzero()[:, 0]
    if 2 * len(places) > len(active):  # fewer are not
        others = x.index_select(0, active.logical_not().nonzero()[:, 0])
        return torch.addmm(whole, others.T, others, alpha=ASIDE - 1)
    some = x.index_select(0, places)
    return torch.addmm(whole, some.T, some, beta=ASIDE, alpha=1 - ASIDE)


def _read(inputs: torch.Tensor, unit: Unit | None) -> torch.Tensor:
    x = inputs.float()
    return x if unit is None else (x - unit.zero_point) * unit.scale


def _is_active(targets: torch.Tensor, end: float) -> torch.Tensor:
    return (targets > -MARGIN * end) & (targets < (1 + MARGIN) * end)


def _centre(sums: list[torch.Tensor], shift: list[torch.Tensor], columns: int) -> Moments:
    """Moments about the weighted means, from sums of values less a shift, float64."""
    gram, cross, inputs, targets, count = sums
    means, goals = inputs / count, targets / count
    gram = (gram / count[..., None]).addcmul_(means[:, :, None], means[:, None], value=-1)
    cross = cross / count[..., None] - goals[..., None] * means[:, None]
    return Moments(gram, cross, means + shift[0].double(), goals + shift[1].double(), columns)
