"""Compare the float and the quantized model on all samples, output by output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..data import CalibrationSet
from ..progress import track
from ..quantization.closed_loop import ClosedLoop
from ..quantization.growth import GrowthTally
from ..quantization.joined_runs import Outputs, join_steps
from ..quantization.output_parts import Parts
from ..quantization.output_tally import OutputTally
from ..quantization.padding_mask import PaddingMask, find_real
from ..report import OutputRecord
from ..runtime.session import Session
from ..runtime.store import Store
from ..stepwise import ClosedLoopRecord
from ..verdict import ScoreRecord
from .next_tokens import NextTokenTally, predicts_next
from .score import LabelTally, Metric, MetricTally


@dataclass(frozen=True)
class Comparisons:
    """The scores of both models, by labels or a user's metric, and their outputs against each other.

    missed: output -> why it could not be compared. notes: remarks on the labels and on the outputs, one line each.
    closed_loop: of models with states, each of which was run with its own.
    """

    scores: tuple[ScoreRecord, ...]
    outputs: tuple[OutputRecord, ...]
    missed: dict[str, str]
    notes: tuple[str, ...] = ()
    closed_loop: ClosedLoopRecord | None = None


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
    parts: Parts | None = None,
    class_axes: Mapping[str, int] | None = None,
) -> Comparisons:
    """Run both models on all samples, ``size`` at a time, and keep counts and sums only.

    labels: the class of every sample, int64 (samples,). labels_demanded: raise GateError where no output is class
    scores; otherwise that is a note. metric: a name, and a function of the outputs by name, (samples, ...) each, and
    of the labels; its score comes first, and the outputs are kept on disk for it. padding: finds the values of the
    outputs that belong to padding, which are not compared. parts: of the outputs, which are compared too.
    class_axes: see ``find_class_axes``.

    Raises ModelError where a model fails or nothing is left to compare, DataError for a class that the scores do not
    have, and GateError where the labels or the metric do not fit the outputs.
    """
    outputs = OutputTally(padding, parts, class_axes=class_axes)
    loop, growth = (ClosedLoop(quantized, samples), GrowthTally(samples)) if samples.states else (None, None)
    batches = samples.split(1 if samples.states else size)
    order = np.concatenate(batches)
    classes = None if labels is None or (metric and labels.dtype.kind == "f") else labels
    with Store() as store:
        by_metric = MetricTally(*metric, store, order) if metric else None
        by_label = None
        if classes is not None:
            by_label = LabelTally(classes, samples, order, demanded=labels_demanded and not metric)
        by_text = NextTokenTally() if predicts_next(original, samples) else None

        def run(batch: list[int]) -> Outputs:
            feeds = samples.read(batch)
            wanted = original.run(feeds)
            given = quantized.run(feeds) if loop is None else loop.run(batch[0], loop.feed(batch[0]))
            if growth is not None:
                growth.add(batch[0], wanted, given)
            if by_text is not None:
                by_text.add(feeds, wanted, given)
            for tally in (by_metric, by_label):
                if tally is not None:
                    tally.add(wanted, given, len(batch))
            return Outputs(wanted, given, len(batch), find_real(feeds))

        runs = map(run, track(batches, len))
        for each in runs if samples.sequences is None else join_steps(runs, samples.sequences.tolist()):
            outputs.add(*each)
        outputs.check()
        scores = [by_metric.record(labels)] if by_metric else []
        scores += by_label.records() if by_label else []
        scores += by_text.records() if by_text else []
    notes = (*(by_label.notes if by_label else ()), *outputs.warnings())
    return Comparisons(tuple(scores), outputs.records(), outputs.missed, notes, growth.record() if growth else None)
