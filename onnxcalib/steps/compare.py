"""Compare the float and the quantized model on a whole set, output by output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import CalibrationSet
from ..numeric.intervals import agreement_interval, sqnr_interval
from ..numeric.metrics import Comparison
from ..report import OutputRecord
from ..runtime.session import Session
from ..runtime.store import Store
from ..verdict import ScoreRecord
from .mask import Padding, find_real
from .score import LabelTally, Metric, MetricTally


class OutputTally:
    """Running comparison of every output of two models; missed: output -> why it cannot be compared.

    A sequence counts as an output for each of its tensors, NAME[0] and so on.
    """

    def __init__(self) -> None:
        self.missed: dict[str, str] = {}
        self._floats: dict[str, Comparison] = {}
        self._others: dict[str, list[int]] = {}

    def add(self, wanted: Mapping[str, Any], given: Mapping[str, Any], samples: int = 1) -> None:
        """Take in both models' outputs for one batch of ``samples``."""
        for name, value in wanted.items():
            self._add(name, value, given[name], samples)

    def _add(self, name: str, value: Any, other: Any, samples: int) -> None:
        if isinstance(value, list) and isinstance(other, list) and len(value) == len(other):
            if all(isinstance(each, dict) for each in (*value, *other)):  # probabilities by class, of each sample
                value, other = (np.array([[d[k] for k in sorted(d)] for d in each]) for each in (value, other))
            else:
                for place, pair in enumerate(zip(value, other, strict=True)):
                    self._add(f"{name}[{place}]", *pair, samples)
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
        """What was found of each output that could be compared, with intervals over the samples."""
        return tuple(_record_output(name, found) for name, found in self._floats.items()) + tuple(
            OutputRecord(name, None, None, None, equal / rows, None, agreement_interval(equal, rows))
            for name, (equal, rows) in self._others.items()
        )


@dataclass(frozen=True)
class Comparisons:
    """Scores against labels or by a user's metric, and outputs against each other.

    missed: output -> why it could not be compared; notes: what to know of the labels, one line each.
    """

    scores: tuple[ScoreRecord, ...]
    outputs: tuple[OutputRecord, ...]
    missed: dict[str, str]
    notes: tuple[str, ...] = ()


def compare(
    original: Session,
    quantized: Session,
    samples: CalibrationSet,
    size: int,
    *,
    labels: np.ndarray | None = None,
    labels_demanded: bool = True,
    metric: tuple[str, Metric] | None = None,
    padding: Padding | None = None,
) -> Comparisons:
    """Run both models over all samples, ``size`` at a time, keeping counts and sums alone.

    labels: class of every sample, int64 (samples,); where no output is class scores ``labels_demanded`` decides between
    a fault and a note. metric: a name and a function of the outputs by name, (samples, ...) each and on disk, and of
    the labels; its score comes first. padding: where outputs hold some, which is not compared. Raises ModelError where
    a model fails, DataError for a class that the scores do not have, GateError where labels or metric do not fit the
    outputs.
    """
    outputs, runs = OutputTally(), samples.split(size)
    order = np.concatenate(runs)
    classes = None if labels is None or (metric and labels.dtype.kind == "f") else labels
    with Store() as store:
        by_metric = MetricTally(*metric, store, order) if metric else None
        by_label = None
        if classes is not None:
            by_label = LabelTally(classes, samples, order, demanded=labels_demanded and not metric)
        for part in runs:
            feeds = samples.read(part)
            pair = original.run(feeds), quantized.run(feeds)
            for tally in (by_metric, by_label):
                if tally is not None:
                    tally.add(*pair, len(part))
            real = None if padding is None else find_real(feeds)
            outputs.add(*(pair if real is None else (padding.hide(each, real) for each in pair)), len(part))
        scores = [by_metric.record(labels)] if by_metric else []
        scores += by_label.records() if by_label else []
    return Comparisons(tuple(scores), outputs.records(), outputs.missed, tuple(by_label.notes) if by_label else ())


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
