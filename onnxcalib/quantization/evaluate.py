"""Evaluate: compare a quantized model's outputs with the float model's on the calibration set, after each stage."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import starmap
from typing import Any

from onnx import ModelProto

from ..data import CalibrationSet
from ..numeric.divergence import Divergence
from ..progress import track
from ..report import OutputRecord
from ..runtime.session import Session, is_float
from ..runtime.store import Store
from .batches import batch_size, spread_runs
from .float_outputs import FloatOutputs
from .joined_runs import Outputs, join_runs
from .output_parts import Parts, take_parts
from .output_tally import OutputTally
from .padding_mask import PaddingMask, find_real

# Of more samples than these, evenly spread ones tell which of two models is nearer.
MOST_SAMPLES = 256
# Output, or part of one -> its divergence, as in the loss of a bit plan. SQNR would say little about class scores, as
# they may all move together. In a model without float outputs: output -> the share of samples on which it differs.
Losses = Mapping[str, float]


class Evaluator:
    """Compares quantized models with the float model, which is run once; its outputs are kept in the store.

    Of many samples it runs those of ``spread_runs``.

    known: those that calibration has kept; where it has, the float model is not run.
    """

    def __init__(
        self,
        original: ModelProto,
        samples: CalibrationSet,
        padding: PaddingMask,
        store: Store,
        *,
        parts: Parts | None = None,
        class_axes: Mapping[str, int] | None = None,
        threads: int,
        fused: bool = True,
        known: FloatOutputs | None = None,
        quantized_samples: CalibrationSet | None = None,
    ) -> None:
        """fused: whether quantized models run with onnxruntime's optimizations, on other samples if there are some."""
        self.given = quantized_samples or samples
        self.samples, self.padding, self.store, self.threads = samples, padding, store, threads
        self.parts, self.class_axes, self.fused = parts, class_axes, fused
        self.known = None if known is None else known.of(samples)
        self.names = [value.name for value in original.graph.output]
        if known is not None and self.known is not None:
            self.runs = spread_runs(samples, known.size, MOST_SAMPLES)
            return
        session = Session(original, threads=threads)
        self.runs = spread_runs(samples, batch_size(session, samples), MOST_SAMPLES)
        for run in track([*self.runs.values()], len):
            for name, value in session.run(samples.read(run)).items():
                store.append(f"wanted:{name}", value)

    def _read(self, place: int, number: int) -> Mapping[str, Any]:
        """The float model's outputs for the run of this number, which is at this place of those that are run."""
        if self.known is not None:
            return self.known[number]
        return {name: self.store.batch(f"wanted:{name}", place) for name in self.names}

    def evaluate(self, quantized: ModelProto) -> tuple[tuple[OutputRecord, ...], Losses]:
        """Compare the outputs; returns a record and the loss of each."""
        session = Session(quantized, optimize=self.fused, threads=self.threads)
        tally = OutputTally(self.padding, self.parts, class_axes=self.class_axes)
        divergences: dict[str, Divergence] = {}

        def run(place: int, number: int) -> Outputs:
            feeds = self.given.read(self.runs[number])
            return Outputs(self._read(place, number), session.run(feeds), self.samples.count(feeds), find_real(feeds))

        for wanted, given, samples, real in join_runs(starmap(run, track([*enumerate(self.runs)]))):
            tally.add(wanted, given, samples, real)
            for name, value in wanted.items():
                if is_float(value) and is_float(given[name]) and value.shape == given[name].shape:
                    pair = [self.padding.fill_padding(name, output, real) for output in (value, given[name])]
                    for label, each in take_parts(self.parts, name, *pair):
                        divergences.setdefault(label, Divergence()).add(*each)
        outputs = tally.records()
        return outputs, {name: each.value for name, each in divergences.items()} or _disagreements(outputs)


def _disagreements(outputs: Sequence[OutputRecord]) -> Losses:
    return {record.name: 1 - record.agreement for record in outputs if record.agreement is not None}


def is_nearer(losses: Losses, before: Losses) -> bool:
    """Whether the geometric mean of the losses has fallen; outputs may have different units."""
    return sum(_gain(before[name], loss) for name, loss in losses.items() if name in before) > 0


def _gain(old: float, new: float) -> float:
    """Logarithm of the ratio of two losses, which may be zero or infinite."""
    if old == new:
        return 0.0
    if new == 0 or math.isinf(old):
        return math.inf
    return -math.inf if old == 0 or math.isinf(new) else math.log(old / new)
