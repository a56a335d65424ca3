"""What grids of activations do to the parts of outputs, with any of the activations on grids, and float weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..graph.extract import needed_nodes
from ..graph.index import Index, is_op
from ..graph.switches import add_switches, feed_switches
from ..progress import track
from ..runtime.session import Session
from ..spec import QParams
from .batches import BATCH_BYTES
from .output_parts import take_parts
from .padding_mask import find_real
from .prepared import Prepared

# Runs to choose by, and as many to check on: those in which a part has most of its power.
RUNS = 16
# Operators that choose values, or put them in an order, by their size.
REORDERS = ("NonMaxSuppression", "NonZero", "TopK", "Unique")

Outputs = Mapping[str, np.ndarray]
Batch = tuple[dict[str, np.ndarray], Outputs]
# The grids of sets of tensors by the first of each; the other sets are in float.
SetGrids = Mapping[str, QParams]


@dataclass(frozen=True)
class PartErrors:
    """One session for all grids, and the float model's outputs in some runs.

    sets: the tensors that share a grid; each set is called by its first tensor. chosen, check: runs to choose by, and
    others to check on, each of as few samples as the model takes; none for texts, of which padding is a part, and none
    where all parts are of outputs with an order of their own.
    """

    prepared: Prepared
    sets: tuple[tuple[str, ...], ...]
    session: Session
    chosen: Sequence[Batch]
    check: Sequence[Batch]

    @classmethod
    def of(cls, prepared: Prepared) -> PartErrors:
        """For all activations of the scheme but those whose grid is lossless."""
        scheme = prepared.scheme
        members = dict.fromkeys(map(scheme.members_of, scheme.computed))
        sets = tuple(
            tuple(t for t in each if t not in scheme.constants)
            for each in members
            if prepared.lossless.keys().isdisjoint(each)
        )
        session = Session(add_switches(prepared.model, scheme, sets), threads=prepared.run.threads)
        found = cls(prepared, sets, session, (), ())
        batches = found._choose_runs()
        return cls(prepared, sets, session, batches[::2], batches[1::2])

    def measure(self, grids: SetGrids, batches: Sequence[Batch]) -> float:
        """The error of the worst part, relative to its own power, with these sets on grids."""
        switches = self._feed(grids)
        power: dict[str, float] = {}
        error: dict[str, float] = {}
        for feeds, wanted in batches:
            given = self.session.run({**feeds, **switches}, list(wanted))
            alike = {t: values for t, values in wanted.items() if given[t].shape == values.shape}
            for part, squares in self._sum_squares(_keep_finite(alike)).items():
                power[part] = power.get(part, 0.0) + squares
            for part, squares in self._sum_squares({t: _subtract(given[t], alike[t]) for t in alike}).items():
                error[part] = error.get(part, 0.0) + squares
        return max((error[part] / power[part] for part in power if power[part] > 0), default=0.0)

    def _feed(self, grids: SetGrids) -> dict[str, np.ndarray]:
        return feed_switches(self.sets, grids, signed=self.prepared.scheme.requirements.activation.signed)

    def _choose_runs(self) -> list[Batch]:
        samples, outputs = self.prepared.samples, _list_outputs(self.prepared)
        if not outputs:
            return []
        none = self._feed({})
        power: list[dict[str, float]] = []
        runs = samples.split(1)
        for run in track(runs):
            feeds = samples.read(run)
            if find_real(feeds) is not None:
                return []
            power.append(self._sum_squares(_keep_finite(self.session.run({**feeds, **none}, outputs))))
        totals = {part: sum(each.get(part, 0.0) for each in power) for each in power for part in each}
        ranks = [max((s / totals[part] for part, s in each.items() if totals[part] > 0), default=0.0) for each in power]
        batches: list[Batch] = []
        held = 0
        for number in np.argsort(-np.asarray(ranks), kind="stable")[: 2 * RUNS]:
            feeds = samples.read(runs[number])
            batches.append((feeds, self.session.run({**feeds, **none}, outputs)))
            held += sum(value.nbytes for each in batches[-1] for value in each.values())
            if held >= BATCH_BYTES:
                break
        return batches

    def _sum_squares(self, outputs: Outputs) -> dict[str, float]:
        """Part of an output -> the sum of its squares."""
        return {
            name: float(np.square(value, dtype=np.float64).sum())
            for output, values in outputs.items()
            for name, (value,) in take_parts(self.prepared.parts, output, values)
        }


def _list_outputs(prepared: Prepared) -> list[str]:
    """The outputs with parts, but for those that are in an order: there, near ties alone make large errors."""
    model = prepared.model
    index = Index(model.graph)
    ordering = {node.name for node in model.graph.node if is_op(node, *REORDERS)}
    return [name for name in prepared.parts if ordering.isdisjoint(needed_nodes(index, (), [name]))]


def _keep_finite(outputs: Outputs) -> Outputs:
    """The outputs with zeros in place of what is not finite, of which there is no error to tell."""
    return {name: np.where(np.isfinite(values), values, np.zeros_like(values)) for name, values in outputs.items()}


def _subtract(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The error of all values that are finite in the float model, infinite where the other value is no number."""
    error = np.zeros_like(wanted)
    np.subtract(given, wanted, out=error, where=np.isfinite(wanted) & np.isfinite(given))
    error[np.isfinite(wanted) & ~np.isfinite(given)] = np.inf
    return error
