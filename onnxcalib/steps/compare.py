"""Compare the float and the quantized model on a whole set: outputs, right answers, a user's own metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import CalibrationSet
from ..errors import ConfigError
from ..labels import check_classes
from ..numeric.intervals import agreement_interval, drop_interval, mean_interval, sqnr_interval
from ..numeric.metrics import Accuracy, Comparison, scores_classes
from ..report import OutputRecord
from ..runtime.session import Session
from ..runtime.store import Store
from ..verdict import ScoreRecord

TOP = (1, 5)
Metric = Callable[[dict[str, np.ndarray], np.ndarray | None], Any]


class OutputTally:
    """Running comparison of every output of two models.

    missed: output -> why it cannot be compared; unlike: those of them whose shapes differ.
    """

    def __init__(self) -> None:
        self.missed: dict[str, str] = {}
        self.unlike: set[str] = set()
        self._floats: dict[str, Comparison] = {}
        self._others: dict[str, list[int]] = {}

    def add(self, wanted: Mapping[str, Any], given: Mapping[str, Any], samples: int = 1) -> None:
        """Take in both models' outputs for one batch of ``samples``."""
        for name, value in wanted.items():
            other = given[name]
            if not isinstance(value, np.ndarray) or not isinstance(other, np.ndarray):
                self.missed[name] = "it is no tensor"
            elif value.shape != other.shape:
                self.missed[name] = f"the float model gives shape {value.shape}, the quantized one {other.shape}"
                self.unlike.add(name)
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
    """Scores against labels or by a user's metric, outputs against each other, and what could not be compared.

    notes: one line for each output that was not, and for labels that fit none; unlike: outputs whose shapes differ.
    """

    scores: tuple[ScoreRecord, ...]
    outputs: tuple[OutputRecord, ...]
    notes: tuple[str, ...] = ()
    unlike: frozenset[str] = frozenset()


def compare(
    original: Session,
    quantized: Session,
    samples: CalibrationSet,
    size: int,
    *,
    labels: np.ndarray | None = None,
    demand_scores: bool = True,
    metric: tuple[str, Metric] | None = None,
) -> Comparisons:
    """Run both models over all samples, ``size`` at a time, keeping counts and sums alone.

    labels: class of every sample, int64 (samples,), for the first output that is class scores; where there is none,
    ``demand_scores`` decides between a fault and a note. metric: a name and a
    function of the outputs by name, (samples, ...) each and on disk, and of the labels. Raises ModelError where a model
    fails, DataError for a class that the scores do not have, ConfigError where labels or metric do not fit the outputs.
    """
    tally, accuracies, notes, done = OutputTally(), [], [], 0
    with Store() as store:
        for feeds in samples.batches(size):
            count = min(samples.fixed_batch or size, len(samples) - done)
            wanted, given = original.run(feeds), quantized.run(feeds)
            tally.add(wanted, given, count)
            if metric is not None:
                _keep(store, metric[0], "float", wanted, count)
                _keep(store, metric[0], "quantized", given, count)
            elif labels is not None and not accuracies:
                name = _find_scores(wanted, given, count)
                if name is None:
                    notes.append(_refuse_labels(wanted, demand_scores))
                    labels = None
                else:
                    classes = wanted[name].shape[1]
                    check_classes(labels, classes, f"output {name}", names=samples.names)
                    accuracies = [Accuracy(k) for k in TOP if k == 1 or classes > k]
            for accuracy in accuracies:
                accuracy.add(wanted[name], given[name], labels[done : done + count])
            done += count
        scores = [_record_accuracy(accuracy) for accuracy in accuracies]
        if metric is not None:
            scores.append(_apply(*metric, store, list(original.outputs), labels))
    notes += [f"output {name} was not compared: {reason}" for name, reason in tally.missed.items()]
    return Comparisons(tuple(scores), tally.records(), tuple(notes), frozenset(tally.unlike))


def _find_scores(wanted: Mapping[str, Any], given: Mapping[str, Any], count: int) -> str | None:
    """The first output that is class scores, one row a sample, in both models."""
    for name, value in wanted.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and scores_classes(value.shape):
            if len(value) == count and given[name].shape == value.shape:
                return name
    return None


def _refuse_labels(wanted: Mapping[str, Any], demand_scores: bool) -> str:
    shapes = ", ".join(f"{name} {getattr(value, 'shape', '')}" for name, value in wanted.items())
    found = f"labels: found the outputs {shapes}; labels need class scores, (samples, classes), of both models"
    if demand_scores:
        raise ConfigError(f"{found}; leave the labels out, or give --metric MODULE:FUNCTION")
    return f"{found}; those of the data are not used"


def _keep(store: Store, metric: str, side: str, outputs: dict[str, Any], count: int) -> None:
    for name, value in outputs.items():
        key, numbers = f"{side}:{name}", isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        if numbers and count == 1 and value.shape[:1] != (1,):
            value = value[None]
        known = store.rows(key, [0]).shape[1:] if key in store else None
        if not numbers or value.shape[:1] != (count,) or known not in (None, value.shape[1:]):
            raise ConfigError(
                f"metric {metric}: output {name} has no row of one shape for each sample; only such numbers can be"
                " kept for a metric; leave out --metric"
            )
        store.append(key, value)


def _apply(name: str, metric: Metric, store: Store, outputs: list[str], labels: np.ndarray | None) -> ScoreRecord:
    """The metric of both models; with an interval where it gives one number for each sample."""
    values = []
    for side in ("float", "quantized"):
        kept = {output: store.mapped(f"{side}:{output}") for output in outputs}
        values.append(_call(name, metric, side, kept, labels))
    scores = [float(value.mean()) for value in values]
    paired = values[0].ndim and values[0].shape == values[1].shape and np.isfinite(values[1]).all()
    interval = mean_interval(values[0] - values[1]) if paired else None
    return ScoreRecord(name, *scores, scores[0] - scores[1], interval)


def _call(name: str, metric: Metric, side: str, kept: dict[str, np.ndarray], labels: np.ndarray | None) -> np.ndarray:
    try:
        value = np.asarray(metric(kept, labels), np.float64)
    except (Exception, SystemExit) as error:  # a user's function may raise anything, and must not end this run
        raise ConfigError(
            f"metric {name}: raised {type(error).__name__}: {error}; it is given the outputs by name and the labels,"
            " and has to return a number, or one for each sample; mend it"
        ) from error
    samples = len(next(iter(kept.values())))
    # Of the quantized model NaN is a result: one that passes no gate.
    finite = side == "quantized" or np.isfinite(value).all()
    if value.shape not in ((), (samples,)) or not finite:
        found = f"shape {value.shape}" if finite else "numbers that are not finite"
        raise ConfigError(
            f"metric {name}: returned {found} for the {side} model; one finite number, or one for each of the"
            f" {samples} samples, is needed; mend it"
        )
    return value


def _record_accuracy(accuracy: Accuracy) -> ScoreRecord:
    scores = [100 * right / accuracy.samples for right in (accuracy.right, accuracy.other_right)]
    low, high = drop_interval(accuracy.lost, accuracy.gained, accuracy.samples)
    return ScoreRecord(f"top-{accuracy.k}", *scores, scores[0] - scores[1], (100 * low, 100 * high))


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
