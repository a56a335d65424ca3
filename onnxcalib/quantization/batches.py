"""How samples are divided into batches that fit in memory, and which of them are taken where some will do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..data import CalibrationSet
from ..runtime.session import Session

# The activations of one batch for which grids are chosen may take so many bytes.
BATCH_BYTES = 48 * 2**20
MOST_SAMPLES = 32


def pick_evenly(runs: Sequence[list[int]], count: int) -> list[list[int]]:
    """So many of the runs at most, evenly spread, each once."""
    return [runs[number] for number in np.unique(np.linspace(0, len(runs) - 1, count).astype(int))]


def batch_size(session: Session, samples: CalibrationSet, limit: int = BATCH_BYTES) -> int:
    """The number of samples whose outputs take less than ``limit`` bytes, measured on the largest sample.

    Outputs that are sequences are not counted.
    """
    if samples.fixed_batch is not None:
        return samples.fixed_batch
    return fit_batch(measure_sample(session, samples), limit)


def measure_sample(session: Session, samples: CalibrationSet, names: Sequence[str] | None = None) -> int:
    """Bytes of the outputs of the largest sample, or of the model's fixed batch; sequences are not counted."""
    outputs = session.run(
        samples.read([samples.largest] if samples.fixed_batch is None else range(samples.fixed_batch)), names
    )
    return sum(value.nbytes for value in outputs.values() if isinstance(value, np.ndarray))


def fit_batch(size: int, limit: int = BATCH_BYTES) -> int:
    """The number of samples of ``size`` bytes that take less than ``limit``: from 1 to MOST_SAMPLES."""
    return int(np.clip(limit // max(size, 1), 1, MOST_SAMPLES))


def spread_runs(samples: CalibrationSet, size: int, most: int) -> dict[int, list[int]]:
    """Indices of the samples of every n-th run of ``CalibrationSet.split``, by the run's number.

    Of more samples than ``most`` these are about as many, or down to half of that.
    """
    runs = samples.split(size)
    return {number: runs[number] for number in range(0, len(runs), -(-len(samples) // most))}


class Batches:
    """A calibration set in batches. They are read anew in every loop, but a pickle holds their values.

    per_run: the least number of samples with which the model runs. one: feeds of that many, of the median size.
    """

    def __init__(self, samples: CalibrationSet, size: int) -> None:
        self.per_run = samples.fixed_batch or 1
        self.one = samples.read(samples.alike(self.per_run))
        self._batched = samples.batched
        self._read = partial(samples.batches, size)

    def count(self, feeds: Mapping[str, Any]) -> int:
        """The number of samples in a batch; 1 where the model's inputs have no axis of samples."""
        return len(next(iter(feeds.values()))) if self._batched else 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._read())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_read": partial(iter, tuple(self))}


def choose_step(size: int, most: int) -> int:
    """Of how many values one is taken, for ``most`` of ``size`` about, so that no column is left out."""
    step = size // max(most, 1)
    while math.gcd(step, size) > 1:
        step += 1
    return max(step, 1)
