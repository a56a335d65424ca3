"""Evaluate: what each stage of a pipeline did to the outputs, on the calibration set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from onnx import ModelProto

from ..data import CalibrationSet
from ..numeric.divergence import Divergence
from ..report import OutputRecord
from ..runtime.session import Session, is_float
from ..runtime.store import Store
from .calibrate import batch_size
from .output_tally import OutputTally
from .padding_mask import PaddingMask, find_real

# Of each output the divergence, as a bit plan's loss counts it: SQNR says little of class scores, all of which may move
# together. Of outputs that are no floats, where none is, the share of samples that differ.
Losses = Mapping[str, float]


class Evaluator:
    """The float model's outputs, run once and kept in the store, to which quantized models are compared."""

    def __init__(
        self, original: ModelProto, samples: CalibrationSet, padding: PaddingMask, store: Store, threads: int
    ) -> None:
        self.samples, self.padding, self.store, self.threads = samples, padding, store, threads
        session = Session(original, threads=threads)
        self.size, self.names = batch_size(session, samples), session.outputs
        for feeds in samples.batches(self.size):
            for name, value in session.run(feeds).items():
                store.append(f"wanted:{name}", value)

    def evaluate(self, quantized: ModelProto) -> tuple[tuple[OutputRecord, ...], Losses]:
        """Its outputs against the float model's, over all samples, and what each of them loses."""
        session, tally = Session(quantized, threads=self.threads), OutputTally()
        divergences: dict[str, Divergence] = {}
        for number, feeds in enumerate(self.samples.batches(self.size)):
            wanted = {name: self.store.batch(f"wanted:{name}", number) for name in self.names}
            given, real = session.run(feeds), find_real(feeds)
            tally.add(*(self.padding.mask_outputs(each, real) for each in (wanted, given)), self.samples.count(feeds))
            for name, value in wanted.items():
                if is_float(value) and is_float(given[name]) and value.shape == given[name].shape:
                    pair = (self.padding.fill_padding(name, each, real) for each in (value, given[name]))
                    divergences.setdefault(name, Divergence()).add(*pair)
        outputs = tally.records()
        return outputs, {name: each.value for name, each in divergences.items()} or _disagreements(outputs)


def _disagreements(outputs: Sequence[OutputRecord]) -> Losses:
    return {record.name: 1 - record.agreement for record in outputs if record.agreement is not None}


def is_nearer(losses: Losses, before: Losses) -> bool:
    """Whether losses have fallen on the geometric mean of the outputs, whose units may differ."""
    return sum(_gain(before[name], loss) for name, loss in losses.items() if name in before) > 0


def _gain(old: float, new: float) -> float:
    """Logarithm of the ratio of two losses, which may be zero or infinite."""
    if old == new:
        return 0.0
    if new == 0 or math.isinf(old):
        return math.inf
    return -math.inf if old == 0 or math.isinf(new) else math.log(old / new)
