"""Samples of a body of If, Loop or Scan: what it reads each time that it runs, in runs of the model around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from onnx import ModelProto, ValueInfoProto

from ..data import CalibrationSet, InputSpec, open_calibration
from ..errors import DataError
from ..graph.bodies import Body, find_graph
from ..graph.extract import infer_types
from ..graph.shapes import recorded_shape
from ..runtime.bodies import ControlFlow, Values
from ..runtime.store import Store

# What the store's names begin with.
FLOAT, QUANTIZED = "float:", "quantized:"
# Runs of one body that are kept: some of each sample's turns, where these are more. With 512, a sample of a thousand
# turns costs no more than one without a loop.
MOST_RUNS = 512
T = TypeVar("T")
_Run = tuple[str, Values]  # the attribute of a body, and what it reads


class BodySamples:
    """What the bodies of one node read in runs of the model around it, in float and quantized, on samples of that."""

    def __init__(
        self,
        model: ModelProto,
        around: ModelProto,
        bodies: Sequence[Body],
        samples: CalibrationSet,
        *,
        quantized: CalibrationSet | None = None,
        store: Store,
        threads: int = 0,
    ) -> None:
        """Raises ModelError where a run cannot be followed.

        model: the float model. around: it, or its quantized form, in which the bodies are as they were. quantized: what
        that reads in place of the samples.
        """
        self._store, self._runs = store, dict.fromkeys((body.attribute for body in bodies), 0)
        self._seen, self._samples, self._steps = dict(self._runs), len(samples), samples.steps
        self._specs: dict[str, list[InputSpec]] = {}
        self._types = infer_types(model)
        for body in bodies:  # what these declare need not hold: sides of what a Loop carries may change
            self._types |= {v.name: ValueInfoProto(name=v.name) for v in find_graph(model, body).input}
        flow = ControlFlow(model, model, bodies, threads=threads)
        other = flow if around is model else ControlFlow(model, around, bodies, threads=threads)
        runs = samples.split(1)
        most = max(1, MOST_RUNS // len(runs))
        for number, run in enumerate(runs):
            feeds = samples.read(run)
            pairs: Iterator[tuple[str, tuple[Values, Values]]]
            if other is flow and quantized is None:
                pairs = ((attribute, (values, {})) for attribute, values in flow.follow(feeds))
            else:
                given = feeds if quantized is None else quantized.read(run)
                pairs = pair_runs(flow.follow(feeds), other.follow(given))
            for attribute, both in keep_spread(self._count(pairs), most, number):
                self._keep(attribute, both)

    def _count(self, pairs: Iterator[tuple[str, T]]) -> Iterator[tuple[str, T]]:
        for attribute, pair in pairs:
            self._seen[attribute] += 1
            yield attribute, pair

    def rate_of(self, body: Body) -> float:
        """How often a body runs in one sample, on average."""
        return self._seen[body.attribute] / self._samples

    def _keep(self, attribute: str, both: tuple[Values, Values]) -> None:
        for kind, values in zip((FLOAT, QUANTIZED), both, strict=True):
            for name, value in values.items():
                self._store.append(f"{kind}{attribute}/{name}", value)
        self._runs[attribute] += 1

    def open(self, body: Body, *, quantized: bool = False) -> CalibrationSet:
        """The samples of a body, each of which is one run of it, in float or quantized.

        Raises DataError where there are none.
        """
        kind, count = QUANTIZED if quantized else FLOAT, self._runs[body.attribute]
        if not count:
            raise DataError("no sample runs it; it has nothing to be calibrated with")
        start = f"{FLOAT}{body.attribute}/"
        names = [key.removeprefix(start) for key in self._store.names() if key.startswith(start)]
        if body.attribute not in self._specs:  # the same for both kinds, from all values of all runs
            self._specs[body.attribute] = [self._describe(body, name) for name in names]
        specs = self._specs[body.attribute]
        if not specs:
            raise DataError("it reads nothing that changes; it gives the same outputs always")

        def read(number: int) -> dict[str, np.ndarray]:
            return {name: self._store.batch(f"{kind}{body.attribute}/{name}", number) for name in names}

        opened = open_calibration((read(number) for number in range(count)), specs)
        opened.steps = self._steps
        return opened

    def range_of(self, body: Body, name: str) -> tuple[float, float]:
        """The least and the largest value of an input of a body, over its runs in float; 0 where it never holds any."""
        ends = [(value.min(), value.max()) for value in self._read(body, name) if value.size]
        lows, highs = zip(*ends, strict=True) if ends else ((0.0,), (0.0,))
        return float(min(lows)), float(max(highs))

    def _read(self, body: Body, name: str) -> list[np.ndarray]:
        count = self._runs[body.attribute]
        return [self._store.batch(f"{FLOAT}{body.attribute}/{name}", number) for number in range(count)]

    def _describe(self, body: Body, name: str) -> InputSpec:
        values = self._read(body, name)
        shapes = {value.shape for value in values}
        if len({len(shape) for shape in shapes}) > 1:
            raise DataError(f"its input {name} has another number of axes from run to run")
        known = self._types.get(name)
        declared = None if known is None else recorded_shape(known)
        rank = len(values[0].shape)
        if declared is None or len(declared) != rank:
            declared = (None,) * rank
        sides = zip(declared, *shapes, strict=True)  # a side that the samples share may be another one in use
        return InputSpec(name, values[0].dtype, tuple(a if {a} == {*b} else None for a, *b in sides), alone=True)


def pair_runs(wanted: Iterator[_Run], given: Iterator[_Run]) -> Iterator[tuple[str, tuple[Values, Values]]]:
    """The runs of bodies in one run of the float model, each with that of the quantized one, as long as both go on.

    They need not, where a condition depends on what is rounded. What has other shapes is left out.
    """
    for (attribute, first), (other, second) in zip(wanted, given, strict=False):
        if attribute != other:
            return
        if all(value.shape == second[name].shape for name, value in first.items()):
            yield attribute, (first, second)


def keep_spread(runs: Iterator[T], most: int, number: int) -> list[T]:
    """About ``most`` of the runs of a sample, evenly spread; ``number``: of the sample, each of which begins elsewhere.

    At most twice as many are in memory, however many there are.
    """
    kept: list[tuple[int, T]] = []
    stride = 1
    for turn, run in enumerate(runs):
        if turn % stride == 0:
            kept.append((turn, run))
        if len(kept) > 2 * max(most, 8):
            stride *= 2
            kept = [each for each in kept if each[0] % stride == 0]
    if len(kept) <= most:
        return [run for _, run in kept]
    phase = number * (5**0.5 - 1) / 2 % 1  # of the golden section, whose multiples lie evenly
    return [kept[int((place + phase) * len(kept) / most)][1] for place in range(most)]
