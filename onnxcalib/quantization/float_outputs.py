"""The float model's outputs on the samples that a file is made from, which calibration has anyway and others need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data import CalibrationSet

# Larger outputs are not kept: the models that give them are run again.
MOST_BYTES = 2**25


class FloatOutputs:
    """The outputs by batch, in the order of ``CalibrationSet.batches(size)``."""

    def __init__(self) -> None:
        self.size = self._left = 0
        self._batches: list[dict[str, np.ndarray]] = []

    def start(self, size: int) -> None:
        """Forget what is kept; batches of so many samples follow."""
        self.size, self._left, self._batches = size, MOST_BYTES, []

    def add(self, outputs: Mapping[str, Any]) -> None:
        """Keep the outputs of the next batch, as long as all are arrays of numbers and small together."""
        arrays = all(isinstance(value, np.ndarray) and not value.dtype.hasobject for value in outputs.values())
        self._left -= sum(value.nbytes for value in outputs.values()) if arrays else MOST_BYTES + 1
        if self._left < 0:
            self._batches.clear()
        else:
            self._batches.append(dict(outputs))

    def of(self, samples: CalibrationSet) -> list[dict[str, np.ndarray]] | None:
        """Those of all batches; None where some are not kept."""
        return self._batches if self.size and len(self._batches) == len(samples.split(self.size)) else None
