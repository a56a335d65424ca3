"""Appraise: what each step of a pipeline did to the outputs, on the calibration set."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onnx import ModelProto

from ..data import CalibrationSet
from ..report import OutputRecord
from ..runtime.session import Session
from ..runtime.store import Store
from .calibrate import batch_size
from .compare import OutputTally


class Appraiser:
    """The float model's outputs, run once and kept in the store, to which quantized models are compared."""

    def __init__(self, original: ModelProto, samples: CalibrationSet, store: Store, threads: int) -> None:
        self.samples, self.store, self.threads = samples, store, threads
        session = Session(original, threads=threads)
        self.size, self.names = batch_size(session, samples), session.outputs
        for feeds in samples.batches(self.size):
            for name, value in session.run(feeds).items():
                store.append(f"wanted:{name}", value)

    def appraise(self, quantized: ModelProto) -> tuple[OutputRecord, ...]:
        """Its outputs against the float model's, over all samples."""
        session, tally = Session(quantized, threads=self.threads), OutputTally()
        for number, feeds in enumerate(self.samples.batches(self.size)):
            wanted = {name: self.store.batch(f"wanted:{name}", number) for name in self.names}
            tally.add(wanted, session.run(feeds), self.samples.count(feeds))
        return tally.records()


def is_nearer(outputs: Sequence[OutputRecord], before: Sequence[OutputRecord]) -> bool:
    """Whether SQNR has risen on the average of the outputs that have one; else agreement, where none does."""
    old = {record.name: record for record in before}
    pairs = [(record, old[record.name]) for record in outputs if record.name in old]
    for name in ("sqnr_db", "agreement"):
        values = [(getattr(a, name), getattr(b, name)) for a, b in pairs]
        gains = [a - b for a, b in values if a is not None and b is not None and math.isfinite(a - b)]
        if gains:
            return sum(gains) > 0
    return False
