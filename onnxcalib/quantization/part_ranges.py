"""Ranges chosen for the parts of outputs, such as a detector's scores, where the grids leave too little of one part.

The squared error of an activation clips its largest values where these are rare. In a detector the rare ones are those
of what it finds: in one of people, the layers of its class branch lose 22 dB to such ranges, and 32 to whole ones. In
its first layers whole ranges are worse, as they follow bright pixels. From which tensor on they are better is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import FULL_BITS
from ..numeric.histogram import Histogram
from ..progress import track
from ..runtime.session import Session
from ..spec import Grids
from .calibrate import BATCH_BYTES, choose_grids
from .output_parts import take_parts
from .padding_mask import find_real
from .prepared import Prepared

# With so many dB of each part, by grids alone, ranges stay as they are.
ENOUGH_DB = 25.0
# The graph is divided into so many stretches of tensors, and whole ranges begin at one of them.
STRETCHES = 8
# What whole ranges must gain on the runs that they were not chosen on.
LEAST_GAIN_DB = 0.5
# Runs to choose on, and as many to check on: those in which a part has most of its power.
RUNS = 16

Outputs = Mapping[str, np.ndarray]
Batch = tuple[dict[str, np.ndarray], Outputs]


def fit_ranges(prepared: Prepared, grids: Grids, histograms: Mapping[str, Histogram]) -> Grids:
    """The grids, with whole ranges behind some tensor where that brings the worst part nearer to the float model's.

    Nothing changes without parts, and where each has ENOUGH_DB.
    """
    scheme, config = prepared.scheme, prepared.config
    few = any(spec.bits != FULL_BITS for spec in scheme.activations.values())
    if not prepared.parts or config.range != "squared-error" or scheme.requantized or few:
        return grids
    chosen, check = _Fit.of(prepared)
    before = check.measure(grids) if check.batches else np.inf
    if before >= ENOUGH_DB:
        return grids
    widest = choose_grids(scheme, histograms, config.model_copy(update={"range": "min-max"})).activations
    sets = [
        each
        for each in dict.fromkeys(map(scheme.members_of, scheme.activations))
        if prepared.lossless.keys().isdisjoint(each)
    ]
    starts = sorted({len(sets) * number // STRETCHES for number in range(STRETCHES + 1)})
    tried = {at: grids.updated({t: widest[t] for each in sets[at:] for t in each}) for at in starts}
    best = max(track(starts), key=lambda at: (chosen.measure(tried[at]), at))
    after = check.measure(tried[best])
    if best == len(sets) or after < before + LEAST_GAIN_DB:
        return grids
    prepared.run.observer.note(
        f"{sets[best][0]} and what follows it: whole ranges, as the parts of the outputs need the largest values; grids"
        f" alone leave {after:.1f} dB of the worst part, {before:.1f} before"
    )
    return tried[best]


@dataclass(frozen=True)
class _Fit:
    """The float model's outputs in some runs, with which those of a model with float weights and grids are compared."""

    prepared: Prepared
    batches: Sequence[Batch]

    @classmethod
    def of(cls, prepared: Prepared) -> tuple[_Fit, _Fit]:
        """Runs to choose on, and others to check on; each run is of as few samples as the model takes."""
        samples = prepared.samples
        session = Session(prepared.model, threads=prepared.run.threads)
        power: list[dict[str, float]] = []
        runs = samples.split(1)
        for run in track(runs):
            feeds = samples.read(run)
            if find_real(feeds) is not None:
                return cls(prepared, ()), cls(prepared, ())
            power.append(_sum_squares(prepared, session.run(feeds, [*prepared.parts])))
        totals = {part: sum(each.get(part, 0.0) for each in power) for each in power for part in each}
        ranks = [max((s / totals[part] for part, s in each.items() if totals[part] > 0), default=0.0) for each in power]
        order = np.argsort(-np.asarray(ranks), kind="stable")[: 2 * RUNS]
        batches: list[Batch] = []
        held = 0
        for number in order:
            feeds = samples.read(runs[number])
            batches.append((feeds, session.run(feeds, [*prepared.parts])))
            held += sum(value.nbytes for each in batches[-1] for value in each.values())
            if held >= BATCH_BYTES:
                break
        return cls(prepared, batches[::2]), cls(prepared, batches[1::2])

    def measure(self, grids: Grids) -> float:
        """The SQNR of the worst part in dB, infinity without an error."""
        prepared = self.prepared
        session = Session(prepared.emit_grids(prepared.scheme, grids), threads=prepared.run.threads)
        power: dict[str, float] = {}
        error: dict[str, float] = {}
        for feeds, wanted in self.batches:
            given = session.run(feeds, [*prepared.parts])
            for part, squares in _sum_squares(prepared, wanted).items():
                power[part] = power.get(part, 0.0) + squares
            for part, squares in _sum_squares(prepared, {t: given[t] - wanted[t] for t in wanted}).items():
                error[part] = error.get(part, 0.0) + squares
        return min((10 * np.log10(power[p] / error[p]) for p in power if power[p] > 0 and error[p] > 0), default=np.inf)


def _sum_squares(prepared: Prepared, outputs: Outputs) -> dict[str, float]:
    """Part of an output -> the sum of its squares."""
    return {
        name: float(np.square(value, dtype=np.float64).sum())
        for output, values in outputs.items()
        for name, (value,) in take_parts(prepared.parts, output, values)
    }
