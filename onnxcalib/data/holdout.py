"""Hold some samples out of the calibration set, so that a result can be measured on what it was not made from."""

from __future__ import annotations

import numpy as np

from ..config import HOLD_OUT_FROM
from .calibration_set import CalibrationSet

SHARE = 4  # one sample in so many is held out,
MOST = 256  # but at most so many: more tell nothing new of the result
# Samples in a row that are held out together. Neighbours are often alike, as frames of a video and windows of a
# recording are: a single sample between two that are used would be no news. One row of a quarter would be worse where
# samples are sorted, as folders of classes are: whole classes would be missing where ranges are chosen.
ROW = 8


def hold_out(samples: CalibrationSet) -> tuple[CalibrationSet, CalibrationSet | None]:
    """The samples to work with, and those that are held out: rows of neighbours, evenly spread over the set.

    None is held out where there are fewer than HOLD_OUT_FROM, or where one run of the model takes more than a quarter.
    Steps of sequences are held out by whole sequences, one of SHARE where there are that many.
    """
    if samples.sequences is not None:
        return _hold_out_sequences(samples, samples.sequences)
    chosen = choose_held_out(len(samples), samples.fixed_batch or 1)
    if not chosen:
        return samples, None
    left = set(chosen)
    return samples.take([index for index in range(len(samples)) if index not in left]), samples.take(chosen)


def _hold_out_sequences(samples: CalibrationSet, sequences: np.ndarray) -> tuple[CalibrationSet, CalibrationSet | None]:
    count = int(sequences[-1]) + 1
    rows = min(count // SHARE, MOST) if len(samples) >= HOLD_OUT_FROM else 0
    if not rows:
        return samples, None
    held = np.isin(sequences, [(2 * number + 1) * count // (2 * rows) for number in range(rows)])
    return samples.take(np.flatnonzero(~held).tolist()), samples.take(np.flatnonzero(held).tolist())


def choose_held_out(count: int, per_run: int) -> list[int]:
    """Indices of the samples to hold out among ``count``; whole runs of ``per_run`` samples are held out."""
    row = -(-ROW // per_run) * per_run
    rows = min(count // SHARE, MOST) // row if count >= HOLD_OUT_FROM else 0
    starts = ((2 * number + 1) * (count // row) // (2 * rows) * row for number in range(rows))
    return [index for start in starts for index in range(start, start + row)]
