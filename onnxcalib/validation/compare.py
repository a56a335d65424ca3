"""Compare the float and the quantized model on a whole set, output by output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..data import CalibrationSet
from ..quantization.output_tally import OutputTally
from ..quantization.padding_mask import PaddingMask, find_real
from ..report import OutputRecord
from ..runtime.session import Session
from ..runtime.store import Store
from ..verdict import ScoreRecord
from .score import LabelTally, Metric, MetricTally


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
    padding: PaddingMask | None = None,
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
