"""The few, even levels on which a tensor's values lie, channel by channel, as those of 8-bit images do.

Such a tensor can be read on an 8-bit grid without any error, if the grid's steps are those of the levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..spec import QParams, QuantSpec

# How far from its level a value may lie, in levels: what float32 leaves of a pixel is some 0.0001.
TOLERANCE = 0.01
# The same for a grid that all channels share: there it is a constant of the channel, which a bias can take up.
GRID_TOLERANCE = 0.25
# Half a step, less what float32 may leave of a pixel.
FLOAT16 = 0.499
# Beyond so many levels from the first one a value is on none of them, and levels closer together are none.
FAR, LEAST_PITCH = 2**31, 1e-30
# Values that are looked at at once.
CHUNK = 2**20


@dataclass(frozen=True)
class Levels:
    """Values ``origin + pitch * k`` of each channel, with integers k from 0 to ``highest``.

    origin and pitch: float64 (channels,); highest: int64 (channels,).
    """

    origin: np.ndarray
    pitch: np.ndarray
    highest: np.ndarray

    def extend(self, values: np.ndarray) -> Levels | None:
        """The levels of other values (channels, n) too; None where one lies between two levels."""
        levels: Levels | None = self
        for start in range(0, values.shape[1], CHUNK):
            levels = levels and levels._extend(values[:, start : start + CHUNK])
        return levels

    def _extend(self, values: np.ndarray) -> Levels | None:
        places = (values - self.origin[:, None]) / self.pitch[:, None]
        if not np.abs(places).max() < FAR:
            return None
        levels = np.rint(places)
        if np.abs(places - levels).max() > TOLERANCE:
            return None
        lowest = np.minimum(levels.min(1), 0).astype(np.int64)
        highest = np.maximum(levels.max(1).astype(np.int64), self.highest) - lowest
        return replace(self, origin=self.origin + self.pitch * lowest, highest=highest)

    def reach_zero(self) -> Levels:
        """The same levels, and those on to the one nearest to zero: a grid has to hold it, as what pads images."""
        zero = np.rint(-self.origin / self.pitch).astype(np.int64)
        lowest = np.minimum(zero, 0)
        return replace(self, origin=self.origin + self.pitch * lowest, highest=np.maximum(self.highest, zero) - lowest)


def find_levels(values: np.ndarray, most: int) -> Levels | None:
    """The levels of values (channels, n), at most ``most`` a channel; None where there are none.

    The pitch is the least difference of two of the first CHUNK values: levels of which no two neighbours occur are not
    found. A channel of one value gets the pitch of the others; if all are so, there are no levels.
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
    # Every value once more: rounding may have parted levels, but must not have joined what lies between them.
    return Levels(origin, np.where(varied, pitch, pitch[varied].mean()), highest).extend(values)


def _fit(values: np.ndarray, most: int) -> tuple[float, float, int] | None:
    """Origin, pitch and number of the last level of ascending values; None where they are on none."""
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
    """The grid of one scale on which the levels of all channels lie, up to a constant a channel; None if none does."""
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
    places = levels.origin / float(scale)
    if np.abs(places - np.rint(places)).max() > GRID_TOLERANCE:
        return None
    # What the grid has left is for values to come: on both sides, or above where there are none below zero.
    margin = 0 if low > -scale / 2 else (spec.qmax - spec.qmin - round((high - low) / float(scale))) // 2
    return QParams(np.asarray(scale), np.asarray(np.rint(spec.qmin + margin - low / scale), np.int32), spec)


def stretch(levels: Levels, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray, QParams] | None:
    """factor and shift (channels,) by which ``factor x + shift`` puts all levels on one grid, and that grid.

    Its scale is 1, or that of the levels where all channels have one, whose factors then are 1. Each channel's zero is
    moved as little as its levels allow, so that channels that reach less far than others in these samples may reach as
    far in others. None where a channel has more levels than the grid.
    """
    levels = levels.reach_zero()
    most = np.array([_most_steps(highest, spec) for highest in levels.highest])
    if 0 in most:
        return None
    # Channels of few levels could stand further apart, but the weight's channels should have one unit if they can.
    steps = np.clip(np.rint(levels.pitch * (most / levels.pitch).min()), 1, most).astype(np.int64)
    steps //= np.gcd.reduce(steps)
    factor, height = steps / levels.pitch, steps * levels.highest
    zero = -factor * levels.origin  # above each channel's lowest level
    middle = (spec.qmin + spec.qmax - (height - zero).max() - (-zero).min()) / 2
    zero_point = np.clip(np.rint(middle), spec.qmin, spec.qmax)
    lowest = np.clip(np.rint(zero_point - zero), spec.qmin, spec.qmax - height)
    shift, unit = lowest + zero - zero_point, 1.0
    # Short of the half that it may be, so that zero itself is rounded to the zero point, with which kernels pad.
    shift = np.where(np.abs(shift) < 0.5 + TOLERANCE, np.clip(shift, -FLOAT16, FLOAT16), shift)
    if np.ptp(factor) / factor.mean() * (spec.qmax - spec.qmin) <= TOLERANCE:
        unit = factor.mean()
        shift = np.full_like(shift, shift.mean()) if np.ptp(shift) <= TOLERANCE else shift
        factor, shift = np.ones_like(factor), shift / unit
    grid = QParams(np.asarray(np.float32(1 / unit)), np.asarray(zero_point, np.int32), spec)
    return factor, shift, grid


def _most_steps(highest: float, spec: QuantSpec) -> int:
    """Steps of the grid that there can be between two levels; 0 where there are more levels than steps."""
    return (spec.qmax - spec.qmin) // max(int(highest), 1)
