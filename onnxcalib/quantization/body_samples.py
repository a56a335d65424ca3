"""Samples of a body of If, Loop or Scan: what it reads each time that it runs, in runs of the model around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto

from ..data import CalibrationSet, InputSpec, open_calibration
from ..errors import DataError
from ..graph.bodies import Body, find_graph
from ..graph.extract import infer_types
from ..graph.shapes import recorded_shape
from ..runtime.bodies import ControlFlow, Values
from ..runtime.store import Store

# Runs of one body that are kept: some of each sample's turns, where these are more. With 512, a sample of a thousand
# turns costs no more than one without a loop.
MOST_RUNS = 512


class BodySamples:
    """What the bodies of one node read in runs of the model around it, on samples of that."""

    def __init__(
        self,
        model: ModelProto,
        around: ModelProto,
        bodies: Sequence[Body],
        samples: CalibrationSet,
        *,
        store: Store,
        threads: int = 0,
    ) -> None:
        """Raises ModelError where a run cannot be followed. model, around: see ``ControlFlow``."""
        self._store, self._runs = store, dict.fromkeys((body.attribute for body in bodies), 0)
        self._types = infer_types(model)
        for body in bodies:  # what these declare need not hold: sides of what a Loop carries may change
            self._types |= {v.name: ValueInfoProto(name=v.name) for v in find_graph(model, body).input}
        flow = ControlFlow(model, around, bodies, threads=threads)
        runs = samples.split(1)
        most = max(1, MOST_RUNS // len(runs))
        for number, run in enumerate(runs):
            kept = keep_spread(flow.follow(samples.read(run)), most, number)
            for attribute, values in kept:
                self._keep(attribute, values)

    def _keep(self, attribute: str, values: Values) -> None:
        for name, value in values.items():
            self._store.append(f"{attribute}/{name}", value)
        self._runs[attribute] += 1

    def open(self, body: Body) -> CalibrationSet:
        """The samples of a body, each of which is one run of it. Raises DataError where there are none."""
        count = self._runs[body.attribute]
        if not count:
            raise DataError("no sample runs it; it has nothing to be calibrated with")
        names = [key.partition("/")[2] for key in self._store.names() if key.startswith(f"{body.attribute}/")]

        def read(number: int) -> dict[str, np.ndarray]:
            return {name: self._store.batch(f"{body.attribute}/{name}", number) for name in names}

        specs = [self._describe(f"{body.attribute}/{name}", name, count) for name in names]
        if not specs:
            raise DataError("it reads nothing that changes; it gives the same outputs always")
        return open_calibration((read(number) for number in range(count)), specs)

    def _describe(self, key: str, name: str, count: int) -> InputSpec:
        values = [self._store.batch(key, number) for number in range(count)]
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


def keep_spread(runs: Iterator[tuple[str, Any]], most: int, number: int) -> list[tuple[str, Any]]:
    """About ``most`` of the runs of a sample, evenly spread; ``number``: of the sample, each of which begins elsewhere.

    At most twice as many are in memory, however many there are.
    """
    kept: list[tuple[int, tuple[str, Any]]] = []
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
