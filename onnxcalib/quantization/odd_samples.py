"""Odd samples: those whose inputs reach so far beyond all others' that one of them would be the range of everything.

Only what the model is given is looked at. Inside it one sample may well reach furthest by far: the one image with an
object, among the scores of a detector.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..data import CalibrationSet

# Samples without which none is odd, and the share of them that may be: more are a kind of data.
LEAST, MOST_SHARE = 8, 1 / 8
# An odd sample's largest magnitude, in those of the others' largest. A grid that holds it costs them 4 of 8 bits.
GAP = 16.0
AT_ONCE = 32  # samples that are read at once


def leave_out_odd(samples: CalibrationSet, warn: Callable[[str], None]) -> CalibrationSet:
    """The set without the runs of the model that hold an odd sample, each of which is warned of.

    Image files are not read: no pixel is odd. The set is the same where no run would be left.
    """
    names = [spec.name for spec in samples.inputs if np.dtype(spec.dtype).kind == "f"]
    if samples.images or len(samples) < LEAST or not names:
        return samples
    peaks = _find_peaks(samples, names)
    odd = {index: name for name, row in zip(names, peaks, strict=True) for index in find_odd(row)}
    per_run = samples.fixed_batch or 1
    runs = {index // per_run for index in odd}
    rest = [index for index in range(len(samples)) if index // per_run not in runs]
    if not odd or not rest:
        return samples
    for index in sorted(odd):
        warn(_describe(samples, index, odd[index], max(peaks[names.index(odd[index])][rest])))
    return samples.take(rest)


def find_odd(peaks: np.ndarray) -> list[int]:
    """Indices of the samples whose peaks, (samples,), lie beyond a gap of factor GAP above all others'."""
    order = np.argsort(peaks, kind="stable")
    first = len(peaks) - int(MOST_SHARE * len(peaks))
    above = (place for place in range(first, len(peaks)) if peaks[order[place]] > GAP * peaks[order[place - 1]] > 0)
    return sorted(map(int, order[next(above, len(peaks)) :]))


def _find_peaks(samples: CalibrationSet, names: list[str]) -> np.ndarray:
    """The largest magnitude in each sample of each input, (inputs, samples)."""
    peaks = np.zeros((len(names), len(samples)))
    for run in samples.split(AT_ONCE):
        feeds = samples.read(run)
        for row, name in enumerate(names):
            peaks[row, run] = np.abs(feeds[name]).reshape(len(run), -1).max(axis=1, initial=0)
    return peaks


def _describe(samples: CalibrationSet, index: int, name: str, usual: float) -> str:
    per_run = samples.fixed_batch or 1
    first = index // per_run * per_run
    value = samples.read(range(first, first + per_run))[name]
    own = value[index - first] if samples.batched else value
    place = np.unravel_index(int(np.abs(own).argmax()), own.shape)
    source = "" if samples.names is None else f" ({samples.names[index]})"
    return (
        f"input {name!r}: sample {samples.indices[index]}{source} has the value {own[place]:g} at"
        f" [{', '.join(map(str, place))}], where the others end at {usual:g}; it is left out; check it, or give more of"
        " its kind"
    )
