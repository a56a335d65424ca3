"""Compare all outputs of two models batch by batch: by their values, and by the share of equal answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..numeric.intervals import agreement_interval, sqnr_interval
from ..numeric.metrics import Comparison
from ..report import OutputRecord


class OutputTally:
    """Running comparison of every output of two models.

    missed: output -> why it cannot be compared. Each tensor of a sequence is an output of its own, NAME[0] and so on.
    """

    def __init__(self) -> None:
        self.missed: dict[str, str] = {}
        self._floats: dict[str, Comparison] = {}
        self._others: dict[str, list[int]] = {}

    def add(self, wanted: Mapping[str, Any], given: Mapping[str, Any], samples: int = 1) -> None:
        """Add both models' outputs for one batch of ``samples``."""
        for name, value in wanted.items():
            self._add(name, value, given[name], samples)

    def _add(self, name: str, value: Any, other: Any, samples: int) -> None:
        if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
            if all(isinstance(each, dict) for each in (*value, *other)):  # probabilities by class, of each sample
                value, other = (np.array([[d[k] for k in sorted(d)] for d in each]) for each in (value, other))
            else:
                for index, pair in enumerate(zip(value, other, strict=True)):
                    self._add(f"{name}[{index}]", *pair, samples)
                return
        if not isinstance(value, np.ndarray) or not isinstance(other, np.ndarray):
            self.missed[name] = "it is no tensor"
        elif value.shape != other.shape:
            self.missed[name] = f"the float model gives shape {value.shape}, the quantized one {other.shape}"
        elif value.dtype.kind == "f":
            self._floats.setdefault(name, Comparison()).add(value, other, samples)
        else:
            stacked = value.ndim and len(value) == samples
            rows = (x.reshape(samples if stacked else 1, -1) for x in (value, other))
            same = np.all(np.equal(*rows), axis=1)
            sums = self._others.setdefault(name, [0, 0])
            sums[0] += int(same.sum())
            sums[1] += len(same)

    def records(self) -> tuple[OutputRecord, ...]:
        """One record for each output that could be compared, with intervals over the samples."""
        return tuple(_record_output(name, found) for name, found in self._floats.items()) + tuple(
            OutputRecord(name, None, None, None, equal / rows, None, agreement_interval(equal, rows))
            for name, (equal, rows) in self._others.items()
        )


def _record_output(name: str, found: Comparison) -> OutputRecord:
    return OutputRecord(
        name,
        found.sqnr_db,
        found.cosine,
        found.max_abs_error,
        found.agreement,
        sqnr_interval(found.powers, found.samples),
        agreement_interval(found.equal, found.rows) if found.rows else None,
    )
