"""How the difference of two models with states grows over the steps of sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data import CalibrationSet
from ..numeric.metrics import Comparison
from ..stepwise import ClosedLoopRecord, GrowthRecord

# Steps that are taken together: the first, those up to 10, those up to 100...
BASE = 10


class GrowthTally:
    """Running comparison of the outputs of two models by the step of the sequence, in ranges of a factor BASE."""

    def __init__(self, samples: CalibrationSet) -> None:
        assert samples.sequences is not None, "only steps have a place in a sequence"
        self._states = tuple(f"{output}:{name}" for name, output in samples.states.items())
        _, starts, lengths = np.unique(samples.sequences, return_index=True, return_counts=True)
        self._lengths = lengths
        self._steps = np.arange(len(samples)) - np.repeat(starts, lengths) + 1
        self._ends = set((starts + lengths - 1).tolist())
        self._found: dict[tuple[str, int | None], Comparison] = {}

    def add(self, index: int, wanted: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Add both models' outputs of the step at this index."""
        decade = len(str(int(self._steps[index]) - 1)) if self._steps[index] > 1 else 0
        places = [decade, None] if index in self._ends else [decade]
        for name, value in wanted.items():
            other = given[name]
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
                continue
            if getattr(other, "shape", None) == value.shape and other.dtype.kind in "fiub":
                for place in places:
                    tally = self._found.setdefault((name, place), Comparison(rows_are_scores=False))
                    tally.add(value[None], other[None])

    def record(self) -> ClosedLoopRecord:
        """SQNR of each output in each range of steps, and in the last steps."""
        most = int(self._lengths.max())
        growth = []
        for (name, place), found in sorted(self._found.items(), key=lambda each: (each[0][0], each[0][1] is None)):
            first, last = (None, None) if place is None else _find_ends(place, most)
            count = len(self._lengths) if first is None else int(np.count_nonzero(self._lengths >= first))
            if found.values:
                growth.append(GrowthRecord(name, first, last, found.sqnr_db, count))
        return ClosedLoopRecord(self._states, len(self._lengths), int(self._lengths.sum()), tuple(growth))


def _find_ends(decade: int, most: int) -> tuple[int, int]:
    """The first and the last step of a range, of sequences of ``most`` steps at most: 1, 2 to 10, 11 to 100..."""
    return (1, 1) if decade == 0 else (BASE ** (decade - 1) + 1, min(BASE**decade, most))
