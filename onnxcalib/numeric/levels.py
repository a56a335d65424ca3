"""The few, even levels on which a tensor's values lie, channel by channel, as those of 8-bit images do.

Such a tensor can be read on an 8-bit grid without any error, if the grid's steps are those of the levels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..spec import QParams, QuantSpec

# How far from its level a value may lie, in levels: what float32 leaves of a pixel is some 0.0001.
TOLERANCE = 0.01
# The same for levels against the grid of a tensor: a constant error, which a bias takes up, but nothing near a tie.
GRID_TOLERANCE = 0.25


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
        if not np.isfinite(values).all():
            return None
        places = (values - self.origin[:, None]) / self.pitch[:, None]
        levels = np.rint(places)
        if np.abs(places - levels).max(initial=0.0) > TOLERANCE:
            return None
        lowest = np.minimum(levels.min(1), 0).astype(np.int64)
        highest = np.maximum(levels.max(1).astype(np.int64), self.highest) - lowest
        return replace(self, origin=self.origin + self.pitch * lowest, highest=highest)


def find_levels(values: np.ndarray, most: int) -> Levels | None:
    """The levels of values (channels, n), at most ``most`` a channel; None where there are none, or a channel has one.

    The pitch is the least difference of two values: levels of which no two neighbours occur are not found.
    """
    found = [_fit(np.unique(channel).astype(np.float64), most) for channel in values]
    if not found or None in found:
        return None
    origin, pitch, highest = zip(*found, strict=True)
    return Levels(np.array(origin), np.array(pitch), np.array(highest))


def _fit(values: np.ndarray, most: int) -> tuple[float, float, int] | None:
    """Origin, pitch and number of the last level of ascending values."""
    # Values that rounding has parted are one level.
    least = (values[-1] - values[0]) / (most / TOLERANCE) if values.size else 0.0
    values = values[np.diff(values, prepend=-np.inf) > least]
    if not 2 <= values.size <= most:
        return None
    levels = np.rint((values - values[0]) / np.diff(values).min())
    pitch, origin = np.polyfit(levels, values, 1)
    apart = np.abs((values - origin) / pitch - levels).max()
    return (float(origin), float(pitch), int(levels[-1])) if levels[-1] < most and apart <= TOLERANCE else None


def shared_grid(levels: Levels, spec: QuantSpec) -> QParams | None:
    """The grid of one scale on which the levels of all channels lie, up to a constant a channel; None if none does."""
    pitch = levels.pitch.mean()
    # Over all levels the pitches must not drift apart.
    if np.abs(levels.pitch / pitch - 1).max() * (spec.qmax - spec.qmin) > TOLERANCE:
        return None
    low, high = levels.origin.min(), (levels.origin + levels.pitch * levels.highest).max()
    share, margin = _spread(np.ceil((high - low) / pitch - TOLERANCE), spec)
    if share == 0:
        return None
    scale = np.float32(pitch / share)
    zero_point = np.rint(spec.qmin + margin - low / scale)
    apart = levels.origin / float(scale)
    exact = np.abs(apart - np.rint(apart)).max() <= GRID_TOLERANCE
    if not exact or not spec.qmin <= zero_point <= spec.qmax:
        return None
    return QParams(np.asarray(scale), np.asarray(zero_point, np.int32), spec)


def stretch(levels: Levels, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray] | None:
    """factor and shift (channels,) by which ``factor x + shift`` puts all levels on the integers of ``spec``.

    None where a channel has more levels than the grid.
    """
    shares, margins = zip(*(_spread(highest, spec) for highest in levels.highest), strict=True)
    if 0 in shares:
        return None
    factor = np.array(shares) / levels.pitch
    return factor, spec.qmin + np.array(margins) - factor * levels.origin


def _spread(highest: float, spec: QuantSpec) -> tuple[int, int]:
    """Steps of the grid to a level, none where there are too many levels, and the steps left below the first one.

    What is left is shared by both ends: the values to come may have a few levels more.
    """
    steps = spec.qmax - spec.qmin
    share = steps // max(int(highest), 1)
    return share, (steps - share * int(highest)) // 2
