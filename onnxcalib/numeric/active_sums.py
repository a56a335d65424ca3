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


# Columns wait until they take so many bytes: adding up the matrices of all channels costs more than few columns.
WAITING_BYTES = 2**26


class ColumnSum(Protocol):
    """What sums columns up to moments: ``MomentSum``, and ``ActiveSum`` in front of an activation function."""

    columns: int

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None: ...

    def merge(self, other: Any) -> None: ...

    def close(self) -> None: ...

    def centre(self) -> Moments: ...


class ActiveSum:
    """Accumulates weighted ``sum x x^T`` and ``sum y x^T`` of each output channel, as ``MomentSum`` those of all.

    The means of the first columns are subtracted before values are multiplied in float32. Sums are float64.
    """

    def __init__(self, end: float, unit: Unit | None = None) -> None:
        """end: of the active range, which begins at 0. unit: that of int8 inputs, which stand for values."""
        self._range, self._unit = (-MARGIN * end, (1 + MARGIN) * end), unit
        self._shift: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.columns = 0

    def add(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Add columns: inputs (G, K, *columns), targets (G, C, *columns) with G or C 1; there may be none of them."""
        x, y = inputs.flatten(2).float(), targets.flatten(2).float()
        if not x.shape[2]:
            return
        if self._unit is not None:
            x = (x - self._unit.zero_point) * self._unit.scale
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
        x, y = x.expand(len(gram), -1), y.reshape(-1, 1)
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
        weights = torch.where((y > self._range[0]) & (y < self._range[1]), 1.0, ASIDE)
        sums = _multiply(x - self._shift[0][..., None], y - self._shift[1][..., None], weights)
        if self._sums:
            for total, own in zip(self._sums, sums, strict=True):
                total += own
        else:
            self._sums = [each.double() for each in sums]

    def centre(self) -> Moments:
        """The moments (G C, ...) about the weighted means. At least one column has been added."""
        self.close()
        gram, cross, inputs, targets, count = self._sums
        means, goals = inputs / count, targets / count
        gram = (gram / count[..., None]).addcmul_(means[:, :, None], means[:, None], value=-1)
        cross = cross / count[..., None] - goals[..., None] * means[:, None]
        x, y = (shift.double() for shift in self._shift)
        return Moments(gram, cross, means + x.expand(len(gram), -1), goals + y.reshape(-1, 1), self.columns)


def _multiply(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    """Of G C channels the sums of w x x^T, w y x^T and w x, and of w y and w, (G C, 1)."""
    goals = y * weights
    sums = [goals.sum(2).reshape(-1, 1), weights.sum(2).reshape(-1, 1)]
    if y.shape[1] == 1:
        weighed = x * weights
        return [weighed @ x.mT, goals @ x.mT, weighed.sum(2), *sums]
    columns, active = x[0].T.contiguous(), weights[0] == 1
    # All columns count ASIDE, and the active ones the rest of 1.
    gram = (ASIDE * (x @ columns)).repeat(y.shape[1], 1, 1)
    for total, own in zip(gram, active, strict=True):
        some = columns[own]
        total.addmm_(some.T, some, alpha=1 - ASIDE)
    return [gram, (goals[0] @ columns)[:, None], weights[0] @ columns, *sums]
