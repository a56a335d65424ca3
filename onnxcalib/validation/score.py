"""Score both models against labels, and by a user's own metric."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data import CalibrationSet
from ..data.labels import check_classes
from ..errors import GateError, first_line
from ..numeric.intervals import drop_interval, mean_interval
from ..numeric.metrics import Accuracy, scores_classes
from ..runtime.session import is_float
from ..runtime.store import Store
from ..verdict import ScoreRecord

TOP = (1, 5)
# A float model that is right in less than CHANCE times 1 / classes of the samples, and in less than POOR, most likely
# got other preprocessing or other labels than in its training. Without POOR, models of 2 and 3 classes would be named.
CHANCE, POOR = 2, 0.3
MOST_SCORE = 1e100
Metric = Callable[[dict[str, np.ndarray], np.ndarray | None], Any]


class LabelTally:
    """Counts the right answers of both models in every output that may be class scores.

    notes: one line where labels fit no output, or more than one, or where the float model is hardly better than chance.
    """

    def __init__(self, labels: np.ndarray, samples: CalibrationSet, order: np.ndarray, *, demanded: bool) -> None:
        """order: the samples' numbers in the order in which they are run. demanded: labels must fit an output."""
        self.notes: list[str] = []
        self._labels, self._names, self._demanded = labels, samples.names, demanded
        self._tallies: dict[str, list[Accuracy]] | None = None
        self._classes: dict[str, int] = {}
        self._order, self._done = order, 0

    def add(self, wanted: Mapping[str, Any], given: Mapping[str, Any], count: int) -> None:
        """Count in the next ``count`` samples, by both models' outputs.

        Raises DataError for a class that no output has, and GateError where labels are demanded but fit no output.
        """
        if self._tallies is None:
            self._tallies = self._choose(wanted, given, count)
        labels = self._labels[self._order[self._done : self._done + count]]
        for name, tally in self._tallies.items():
            for accuracy in tally:
                accuracy.add(wanted[name], given[name], labels)
        self._done += count

    def _choose(self, wanted: Mapping[str, Any], given: Mapping[str, Any], count: int) -> dict[str, list[Accuracy]]:
        fit = {
            name: value.shape[1]
            for name, value in wanted.items()
            if is_float(value) and scores_classes(value.shape)
            if len(value) == count and getattr(given[name], "shape", None) == value.shape
        }
        if not fit:
            shapes = ", ".join(f"{name} {getattr(value, 'shape', '')}" for name, value in wanted.items())
            found = f"labels: found the outputs {shapes}; labels need class scores, (samples, classes), of both models"
            if self._demanded:
                raise GateError(f"{found}; leave the labels out, or give --metric MODULE:FUNCTION")
            self.notes.append(f"{found}; the labels of the data are not used")
            return {}
        widest = max(fit, key=fit.__getitem__)
        check_classes(self._labels, fit[widest], f"output {widest}", names=self._names)
        self._classes = fit
        enough = [name for name, classes in fit.items() if classes > self._labels.max()]
        return {name: [Accuracy(k) for k in TOP if k == 1 or fit[name] > k] for name in enough}

    def records(self) -> list[ScoreRecord]:
        """Top-1 and top-5 of the output on which the float model is most accurate, as others may be features."""
        if not self._tallies:
            return []
        right = {name: tally[0].right for name, tally in self._tallies.items()}
        best = max(right, key=right.__getitem__)
        if len(right) > 1:
            others = ", ".join(name for name in right if name != best)
            self.notes.append(
                f"labels: compared with output {best}, on which the float model is most accurate, and not with {others}"
            )
        self._check_chance(self._tallies[best][0], self._classes[best])
        return [_record(accuracy, best) for accuracy in self._tallies[best]]

    def _check_chance(self, found: Accuracy, classes: int) -> None:
        share = found.right / found.samples
        if share < min(CHANCE / classes, POOR):
            self.notes.append(
                f"labels: the float model is right in only {100 * share:.1f}% of the samples; check the preprocessing"
                " and the labels"
            )


def _record(accuracy: Accuracy, output: str) -> ScoreRecord:
    n = accuracy.samples
    low, high = drop_interval(accuracy.lost, accuracy.gained, n)
    drop = 100 * (accuracy.lost - accuracy.gained) / n
    right, other_right = 100 * accuracy.right / n, 100 * accuracy.other_right / n
    return ScoreRecord(f"top-{accuracy.k}", right, other_right, drop, (100 * low, 100 * high), output)


class MetricTally:
    """Keeps both models' outputs on disk, for a user's function of all of them."""

    def __init__(self, name: str, metric: Metric, store: Store, order: np.ndarray) -> None:
        """order: the samples' numbers in the order in which they are run.

        The function gets the samples in their own order. Where they are run in another, it gets them in memory.
        """
        self.name, self._metric, self._store = name, metric, store
        self._rows = None if (np.diff(order) > 0).all() else np.argsort(order)
        self._outputs: list[str] = []

    def add(self, wanted: Mapping[str, Any], given: Mapping[str, Any], count: int) -> None:
        """Keep both models' outputs of the next ``count`` samples.

        Raises GateError for an output that has no row of numbers for each sample.
        """
        self._outputs = list(wanted)
        for side, outputs in (("float", wanted), ("quantized", given)):
            for name, value in outputs.items():
                self._keep(f"{side}:{name}", name, value, count)

    def _keep(self, key: str, name: str, value: Any, count: int) -> None:
        numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
        if numbers and count == 1 and value.shape[:1] != (1,):
            value = value[None]
        known = self._store.rows(key, [0]).shape[1:] if key in self._store else None
        if not numbers or value.shape[:1] != (count,) or known not in (None, value.shape[1:]):
            raise GateError(
                f"metric {self.name}: output {name} has no row of one shape for each sample; only such numbers can be"
                " kept for a metric; leave out --metric"
            )
        self._store.append(key, value)

    def record(self, labels: np.ndarray | None) -> ScoreRecord:
        """The metric of both models, with an interval where it returns a number for each sample. Raises GateError."""
        wanted, given = (self._call(side, labels) for side in ("float", "quantized"))
        with np.errstate(over="ignore", invalid="ignore"):
            float_score, quantized_score = float(wanted.mean()), float(given.mean())
        paired = wanted.ndim and wanted.shape == given.shape and _is_finite(given)
        interval = mean_interval(wanted - given, float(np.ptp([wanted, given]))) if paired else None
        return ScoreRecord(self.name, float_score, quantized_score, float_score - quantized_score, interval)

    def _call(self, side: str, labels: np.ndarray | None) -> np.ndarray:
        kept = {name: self._store.mapped(f"{side}:{name}") for name in self._outputs}
        if self._rows is not None:
            kept = {name: values[self._rows] for name, values in kept.items()}
        try:
            value = np.asarray(self._metric(kept, labels), np.float64)
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            raise GateError(
                f"metric {self.name}: raised {type(error).__name__}: {first_line(error)}; it is given the outputs by"
                " name and the labels, and has to return a number, or one for each sample; correct it"
            ) from error
        samples = len(next(iter(kept.values())))
        # NaN of the quantized model is a result, which passes no gate.
        finite = side == "quantized" or _is_finite(value)
        if value.shape not in ((), (samples,)) or not finite:
            found = f"shape {value.shape}" if finite else "numbers that are not finite"
            raise GateError(
                f"metric {self.name}: returned {found} for the {side} model; one finite number, or one for each of the"
                f" {samples} samples, is needed; correct it"
            )
        return value


def _is_finite(values: np.ndarray) -> bool:
    """Whether sums of the values, and of their squares, are finite too."""
    return bool((np.abs(values) < MOST_SCORE).all())


def load_metric(path: str) -> tuple[str, Metric]:
    """The name, and the function that ``module:function`` names, from the current folder first. Raises GateError."""
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        metric = importlib.import_module(module)
        for part in name.split("."):
            metric = getattr(metric, part)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise GateError(
            f"metric {path}: cannot be loaded ({type(error).__name__}: {first_line(error)}); MODULE:FUNCTION of an"
            " installed module, or of a file in this folder, is needed"
        ) from error
    finally:
        sys.path.remove(here)
    if not callable(metric):
        raise GateError(f"metric {path}: is no function; name one that takes the outputs and the labels")
    return path, metric
