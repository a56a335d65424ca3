"""Powers of two of activations, by the error of the model's outputs.

Calibration chooses the power that leaves each tensor the least error. A neighbour of it may be better: whether clipping
or coarse steps do more harm depends on all that reads the tensor, and on what other tensors have lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..config import FULL_BITS
from ..data import CalibrationSet
from ..graph.switches import add_switches, feed_switches
from ..numeric.histogram import Histogram
from ..numeric.ranges import LEAST_SCALE, measure_squares
from ..progress import track
from ..runtime.session import Session
from ..spec import Grids, QParams
from .batches import BATCH_BYTES, pick_evenly
from .output_parts import take_parts
from .padding_mask import find_real
from .prepared import Prepared

# Samples on which powers are compared, while they take BATCH_BYTES at most, and those without which nothing is certain.
SAMPLES, LEAST_SAMPLES = 48, 8
# Samples of a run: few, as a power that does harm shows it in the first ones.
BATCH = 8
# Each set is tried so often: what others have lost may change what is best.
ROUNDS = 2
# The powers beside the calibrated one that are tried: half of the scale and twice the scale.
FACTORS = (0.5, 2.0)
# A power at which the tensor's own error is so many times the least is not tried. Twice a scale that clips nothing
# makes four times the error.
MOST_RATIO = 3.5
# The standard errors by which the loss must fall. Without them, what fits a few samples alone is taken too.
CERTAIN = 1.0
# No further samples are looked at where the loss has risen by so much, or has not fallen on so many samples.
HOPELESS, FIRST = 1.2, 16

Allows = Callable[[Grids], bool]


def choose_powers(
    prepared: Prepared, histograms: Mapping[str, Histogram], grids: Grids, allows: Allows = lambda grids: True
) -> Grids:
    """The grids with the powers of two, p - 1, p or p + 1 of each set of tensors, that leave the outputs least error.

    One set after the other is tried in the order of the graph, with all others on their present grids, and float
    weights. histograms: of the activations. allows: whether the target takes these grids.
    """
    scheme = prepared.scheme
    sets = [
        members
        for members in dict.fromkeys(map(scheme.members_of, scheme.activations))
        if (spec := scheme.activations[members[0]]).power_of_two
        and spec.bits == FULL_BITS
        and prepared.lossless.keys().isdisjoint(members)
    ]
    tried = {members: _list_plausible(members, histograms, grids.activations[members[0]]) for members in sets}
    if max(map(len, tried.values()), default=1) == 1 or len(prepared.samples) < LEAST_SAMPLES:
        return grids
    judge = _Judge.of(prepared, sets)
    found, present = grids, judge.measure(grids.activations)
    if present is None or len(present) < LEAST_SAMPLES:
        return grids
    for _ in range(ROUNDS):
        before = found
        for members, others in track([*tried.items()]):
            for grid in (each for each in others if each.scale != found.activations[members[0]].scale):
                changed = found.updated(dict.fromkeys(members, grid))
                losses = judge.measure(changed.activations, present) if allows(changed) else None
                if losses is not None and _is_less(losses, present):
                    found, present = changed, losses
        if found is before:
            break
    moved = sum(found.activations[t].scale != grids.activations[t].scale for t, *_ in sets)
    prepared.run.observer.note(f"powers of two of activations: {moved} of {len(sets)} moved for the outputs")
    return found


def _list_plausible(members: Sequence[str], histograms: Mapping[str, Histogram], grid: QParams) -> list[QParams]:
    """A grid and those of its neighbours that may be as good, by the error of the tensors themselves."""
    levels = grid.spec.qmax - grid.spec.qmin
    least = max(LEAST_SCALE, grid.spec.least_range / levels)
    near = [replace(grid, scale=np.asarray(grid.scale * np.float32(factor))) for factor in FACTORS]
    near = [grid, *(each for each in near if float(each.scale) >= least)]
    errors = [sum(measure_squares(histograms[t], each) for t in members) for each in near]
    return [each for each, error in zip(near, errors, strict=True) if each is grid or error <= MOST_RATIO * min(errors)]


def _is_less(losses: np.ndarray, present: np.ndarray) -> bool:
    """Whether the mean loss of the samples falls by more than CERTAIN standard errors."""
    with np.errstate(invalid="ignore"):  # infinite losses on both sides
        gains = present - losses
        return bool(gains.mean() > CERTAIN * gains.std(ddof=1) / np.sqrt(len(gains)))


@dataclass(frozen=True)
class _Judge:
    """One session for all powers, and what the float model gives.

    sets: tensors that share a grid. batches: feeds, the number of their samples, and the float outputs. power: output,
    or part of one -> its mean power in a sample.
    """

    prepared: Prepared
    sets: Sequence[tuple[str, ...]]
    session: Session
    batches: Sequence[tuple[dict[str, np.ndarray], int, Mapping[str, np.ndarray]]]
    power: Mapping[str, float]

    @classmethod
    def of(cls, prepared: Prepared, sets: Sequence[tuple[str, ...]]) -> _Judge:
        threads, batches, power = prepared.run.threads, [], dict[str, float]()
        exact = Session(prepared.model, name="the prepared model", threads=threads)
        held = 0
        for run in _choose_runs(prepared.samples):
            if held >= BATCH_BYTES:
                break
            feeds = prepared.samples.read(run)
            values = {t: v for t, v in exact.run(feeds).items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
            wanted = {t: prepared.padding.fill_padding(t, v, find_real(feeds)) for t, v in values.items()}
            batches.append((feeds, len(run), wanted))
            held += sum(value.nbytes for each in (feeds, wanted) for value in each.values())
            for name, squares in _sum_squares(prepared, wanted, len(run)):
                power[name] = power.get(name, 0.0) + float(squares.sum())
        count = sum(each for _, each, _ in batches)
        session = Session(add_switches(prepared.model, prepared.scheme, sets), threads=threads)
        return cls(
            prepared, sets, session, batches, {name: total / count for name, total in power.items() if total > 0}
        )

    def measure(self, grids: Mapping[str, QParams], present: np.ndarray | None = None) -> np.ndarray | None:
        """The loss of each sample: the squared error of the outputs, relative to their mean power.

        None where the first samples show that it is not below the present one.
        """
        switches = feed_switches(self.sets, {members[0]: grids[members[0]] for members in self.sets})
        losses: list[float] = []
        for feeds, count, wanted in self.batches:
            given = self.session.run({**feeds, **switches}, list(wanted))
            own = np.zeros(count)
            for name, squares in _sum_squares(self.prepared, self._subtract(given, wanted, feeds), count):
                own += squares / self.power.get(name, np.inf)
            losses += own.tolist()
            most = HOPELESS if len(losses) < FIRST else 1.0
            if present is not None and not sum(losses) <= most * present[: len(losses)].sum():
                return None
        return np.asarray(losses)

    def _subtract(
        self, given: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The errors of the outputs that are of the float model's shape, zero at padding."""
        real, fill = find_real(feeds), self.prepared.padding.fill_padding
        with np.errstate(invalid="ignore", over="ignore"):
            return {t: fill(t, given[t], real) - v for t, v in wanted.items() if given[t].shape == v.shape}


def _choose_runs(samples: CalibrationSet) -> list[list[int]]:
    """Runs of about SAMPLES samples, spread evenly over the set."""
    if samples.fixed_batch is None:
        among = np.linspace(0, len(samples) - 1, min(SAMPLES, len(samples))).astype(int)
        return samples.split(BATCH, among.tolist())
    return pick_evenly(samples.split(samples.fixed_batch), max(1, SAMPLES // samples.fixed_batch))


def _sum_squares(prepared: Prepared, outputs: Mapping[str, np.ndarray], count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Each output, or part of one, and the sum of its squares in each of so many samples."""
    for output, values in outputs.items():
        for name, (part,) in take_parts(prepared.parts, output, values):
            squares = np.square(part, dtype=np.float64)
            stacked = squares.ndim > 0 and len(squares) == count
            yield name, squares.reshape(count, -1).sum(1) if stacked else np.full(count, squares.sum() / count)
