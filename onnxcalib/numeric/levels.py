"""Tensors whose values lie on few, evenly spaced levels in every channel, as those of 8-bit images do.

On a grid whose levels are the tensor's own levels, such a tensor is quantized without any error.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..spec import QParams, QuantSpec

# How far from its level a value may lie, in units of the pitch. Pixels in float32 are off by some 0.0001.
TOLERANCE = 0.01
# The same on a grid that all channels share, where it is a constant of the channel, which a bias can absorb.
GRID_TOLERANCE = 0.25
# Most distance of zero from the zero point, in steps of the grid: half a step, less the rounding of pixels in float32.
MOST_SHIFT = 0.499
# A value so many levels from the first one is on none, and a smaller pitch is none.
FAR, LEAST_PITCH = 2**31, 1e-30
# Values that are compared with their levels at once.
CHUNK = 2**20


@dataclass(frozen=True)
class Levels:
    """The levels ``origin + pitch * k`` of each channel, for integers k from 0 to ``highest``.

    origin and pitch: float64 (channels,), in units of the values; highest: int64 (channels,).
    """

    origin: np.ndarray
    pitch: np.ndarray
    highest: np.ndarray

    def extend(self, values: np.ndarray) -> Levels | None:
        """These levels extended to those of other values (channels, n); None where one lies between two levels."""
        levels: Levels | None = self
        for start in range(0, values.shape[1], CHUNK):
            levels = levels and levels._extend(values[:, start : start + CHUNK])
        return levels

    def _extend(self, values: np.ndarray) -> Levels | None:
        positions = (values - self.origin[:, None]) / self.pitch[:, None]
        if not np.abs(positions).max() < FAR:
            return None
        levels = np.rint(positions)
        if np.abs(positions - levels).max() > TOLERANCE:
            return None
        lowest = np.minimum(levels.min(1), 0).astype(np.int64)
        highest = np.maximum(levels.max(1).astype(np.int64), self.highest) - lowest
        return replace(self, origin=self.origin + self.pitch * lowest, highest=highest)

    def reach_zero(self) -> Levels:
        """These levels extended to the one nearest to zero, which a grid has to hold: images are padded with it."""
        zero = np.rint(-self.origin / self.pitch).astype(np.int64)
        lowest = np.minimum(zero, 0)
        return replace(self, origin=self.origin + self.pitch * lowest, highest=np.maximum(self.highest, zero) - lowest)


def find_levels(values: np.ndarray, most: int) -> Levels | None:
    """The levels of values (channels, n), at most ``most`` in a channel; None where the values lie on none.

    The pitch is the least difference of a channel's first CHUNK values, so that levels are only found where two
    neighbours occur. A channel of a single value gets the mean pitch of the others; None if all channels are constant.
    """
    if not values.size or not np.isfinite(values).all():
        return None
    found = [_fit(np.unique(channel[:CHUNK]).astype(np.float64), most) for channel in values]
    if None in found:
        return None
    origin, pitch, highest = (np.array(each) for each in zip(*found, strict=True))
    varied = highest > 0
    if not varied.any() or pitch[varied].min() < LEAST_PITCH:
        return None
    # All values are checked: the fit saw only the first of them, and merged those that rounding had parted.
    return Levels(origin, np.where(varied, pitch, pitch[varied].mean()), highest).extend(values)


def _fit(values: np.ndarray, most: int) -> tuple[float, float, int] | None:
    """Origin, pitch and index of the last level of ascending values; None where there are more than ``most`` levels."""
    least = (values[-1] - values[0]) / (most / TOLERANCE)
    values = values[np.diff(values, prepend=-np.inf) > least]
    if values.size == 1:
        return float(values[0]), 0.0, 0
    if values.size > most:
        return None
    levels = np.rint((values - values[0]) / np.diff(values).min())
    pitch, origin = np.polyfit(levels, values, 1)
    return (float(origin), float(pitch), int(levels[-1])) if levels[-1] < most else None


def shared_grid(levels: Levels, spec: QuantSpec) -> QParams | None:
    """The grid of one scale on which the levels of all channels lie, up to a constant a channel; None without one.

    Levels are on a symmetric grid, or on one of powers of two, by chance alone, and no grid of those is looked for.
    """
    if spec.symmetric or spec.power_of_two:
        return None
    levels = levels.reach_zero()
    pitch = levels.pitch.mean()
    # Over all levels the pitches must not drift apart.
    if np.abs(levels.pitch / pitch - 1).max() * (spec.qmax - spec.qmin) > TOLERANCE:
        return None
    low, high = levels.origin.min(), (levels.origin + levels.pitch * levels.highest).max()
    most = _most_steps(np.ceil((high - low) / pitch - TOLERANCE), spec)
    if most == 0:
        return None
    scale = np.float32(pitch / most)
    offsets = levels.origin / float(scale)
    if np.abs(offsets - np.rint(offsets)).max() > GRID_TOLERANCE:
        return None
    # Levels that the grid has left are for values of other samples: on both sides, or above if none is below zero.
    margin = 0 if low > -scale / 2 else (spec.qmax - spec.qmin - round((high - low) / float(scale))) // 2
    return QParams(np.asarray(scale), np.asarray(np.rint(spec.qmin + margin - low / scale), np.int32), spec)


def stretch(levels: Levels, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray, QParams] | None:
    """factor and shift (channels,) with which ``factor x + shift`` puts all levels on one grid, and that grid.

    The grid's scale is 1, or, if it may be other than a power of two, the pitch where all channels have the same, and
    the factors are 1 then. Each channel's zero is shifted as little as its levels allow, so that the grid has room for
    channels that reach further in other samples. None where a channel has more levels than the grid.
    """
    levels = levels.reach_zero()
    most = np.array([_most_steps(highest, spec) for highest in levels.highest])
    if 0 in most:
        return None
    # Channels of few levels could have more steps a level, but equal units are better for the weight's channels.
    steps = np.clip(np.rint(levels.pitch * (most / levels.pitch).min()), 1, most).astype(np.int64)
    steps //= np.gcd.reduce(steps)
    factor, height = steps / levels.pitch, steps * levels.highest
    zero = -factor * levels.origin  # above each channel's lowest level
    middle = (spec.qmin + spec.qmax - (height - zero).max() - (-zero).min()) / 2
    zero_point = spec.middle if spec.symmetric else np.clip(np.rint(middle), spec.qmin, spec.qmax)
    lowest = np.clip(np.rint(zero_point - zero), spec.qmin, spec.qmax - height)
    shift, unit = lowest + zero - zero_point, 1.0
    # Below half a step, so that zero is rounded to the zero point, with which kernels pad.
    shift = np.where(np.abs(shift) < 0.5 + TOLERANCE, np.clip(shift, -MOST_SHIFT, MOST_SHIFT), shift)
    if not spec.power_of_two and np.ptp(factor) / factor.mean() * (spec.qmax - spec.qmin) <= TOLERANCE:
        unit = factor.mean()
        shift = np.full_like(shift, shift.mean()) if np.ptp(shift) <= TOLERANCE else shift
        factor, shift = np.ones_like(factor), shift / unit
    grid = QParams(np.asarray(np.float32(1 / unit)), np.asarray(zero_point, np.int32), spec)
    return factor, shift, grid


def _most_steps(highest: float, spec: QuantSpec) -> int:
    """Most steps of the grid from one level to the next; 0 where there are more levels than steps."""
    return (spec.qmax - spec.qmin) // max(int(highest), 1)
