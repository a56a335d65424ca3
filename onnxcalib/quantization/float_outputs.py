"""The float model's outputs on the samples that a file is made from, which calibration has anyway and others need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import CalibrationSet
from ..runtime.records import KINDS

# Larger outputs are not kept: the models that give them are run again.
MOST_BYTES = 2**25


@dataclass(frozen=True)
class KeptOutputs:
    """What a cache or a checkpoint has of the outputs, so that a run that takes it compares the same numbers."""

    size: int
    batches: tuple[dict[str, np.ndarray], ...]


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
        arrays = all(isinstance(value, np.ndarray) and value.dtype.kind in KINDS for value in outputs.values())
        self._left -= sum(value.nbytes for value in outputs.values()) if arrays else MOST_BYTES + 1
        if self._left < 0:
            self._batches.clear()
        else:
            self._batches.append(dict(outputs))

    def describe(self) -> KeptOutputs:
        """All that is kept, for ``take``."""
        return KeptOutputs(self.size, tuple(self._batches))

    def take(self, kept: KeptOutputs) -> None:
        """Have what was kept when it was described."""
        self.start(kept.size)
        self._batches = list(kept.batches)

    def of(self, samples: CalibrationSet) -> list[dict[str, np.ndarray]] | None:
        """Those of all batches; None where some are not kept."""
        return self._batches if self.size and len(self._batches) == len(samples.split(self.size)) else None
