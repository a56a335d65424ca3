"""Calibrate: run the float model over the calibration set, and choose a grid for every activation of the scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from onnx import ModelProto

from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..errors import DataError
from ..graph.finite import explain_nan
from ..graph.values import read_values
from ..numeric.histogram import Histogram
from ..numeric.ranges import choose_grid, fix_grid, make_grid
from ..numeric.step_histogram import StepHistogram
from ..runtime.session import Session
from ..spec import Grids, QParams, QuantScheme, QuantSpec
from .batches import choose_step, fit_batch, measure_sample
from .float_outputs import FloatOutputs
from .layer_targets import TargetKeeper
from .padding_mask import PaddingMask, find_real, select

# Runs are counted together until their tensors take so many bytes: each call takes as long as thousands of values.
TOGETHER_BYTES = 2**24
# Values of a tensor that are counted, about; of larger ones each batch shows others, and the ends of all. A quarter of
# them costs ResNet-20 and ResNet-56 0.1 dB and 0.3 points at W4A4; four times as many gain nothing.
MOST_VALUES = 2**21
# How far beyond the values of the samples a whole range ends, as a share of it. The layers of a detector of people give
# up to 1.5 times as much on 200 other images as on 48, most of them less than 1.25 times.
MARGIN = 0.25
AnyHistogram: TypeAlias = Histogram | StepHistogram


@dataclass(frozen=True)
class Statistics:
    """What the float model showed on the calibration set.

    histograms: activation of the scheme -> histogram. batch: the number of samples whose activations take less than
    BATCH_BYTES. sample_bytes: what those of the largest sample take.
    """

    histograms: Mapping[str, Histogram]
    batch: int
    sample_bytes: int = 0


def collect_statistics(
    model: ModelProto,
    tensors: Sequence[str],
    samples: CalibrationSet,
    padding: PaddingMask,
    *,
    threads: int = 0,
    also: Sequence[str] = (),
    outputs: FloatOutputs | None = None,
    targets: TargetKeeper | None = None,
) -> Statistics:
    """Histograms of the tensors over the whole set without its padding, one batch in memory at a time.

    Values of steps of sequences count relative to their step's signal: see ``StepHistogram``. The histogram of a
    constant is of its own values. also: what the session gives beside the tensors. outputs: what keeps the model's
    outputs; targets: what keeps those of layers.

    Raises DataError where the float model gives a value that is not finite, or ModelError where a constant is why.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    constants, tensors = [t for t in tensors if t in stored], [t for t in tensors if t not in stored]
    session = Session(model, also=[*tensors, *also], name="the prepared model", threads=threads)
    ends = [value.name for value in model.graph.output]
    made = [name for name in session.outputs if name in tensors or name in ends]
    sample_bytes = measure_sample(session, samples, made)
    size = samples.fixed_batch or fit_batch(sample_bytes)
    histograms = {name: StepHistogram() if samples.steps else Histogram() for name in tensors}
    made = [name for name in session.outputs if name in histograms]
    ends = [] if outputs is None else ends
    if outputs is not None:
        outputs.start(size)
    targets = targets if tensors else None  # without them the float model does not run
    if targets is not None:
        targets.start(samples, size)
    waiting: list[_Batch] = []
    for feeds in samples.batches(size) if tensors else ():
        more = [name for name in session.outputs if name in targets.tensors] if targets is not None else []
        values = {**feeds, **session.run(feeds, list(dict.fromkeys([*made, *ends, *more])))}
        if outputs is not None:
            outputs.add({name: values[name] for name in ends})
        if targets is not None and not targets.add_feeds(feeds, values):
            targets = None
        waiting.append(_Batch({name: values[name] for name in histograms}, find_real(feeds), samples.count(feeds)))
        if len(waiting) * size * sample_bytes >= TOGETHER_BYTES:
            _count(model, histograms, padding, waiting, len(samples))
            waiting = []
    if targets is not None:
        targets.close()
    _count(model, histograms, padding, waiting, len(samples))
    found = join_all(histograms) | {name: _describe(read_values(stored[name])) for name in constants}
    return Statistics(found, size, sample_bytes)


class _Batch(NamedTuple):
    """Tensors of a run, the mask of its tokens (see ``PaddingMask``), and the number of its samples."""

    values: Mapping[str, np.ndarray]
    real: np.ndarray | None
    samples: int


def _count(
    model: ModelProto,
    histograms: Mapping[str, AnyHistogram],
    padding: PaddingMask,
    batches: Sequence[_Batch],
    total: int,
) -> None:
    """Take in the tensors of some batches of ``total`` samples. Raises as ``collect_statistics``."""
    for name, histogram in histograms.items():
        try:
            for values, mask, count in _join(name, batches, padding):
                _add(histogram, values, mask, count, total)
        except ValueError as error:
            raise explain_nan(model, name) or DataError(
                f"tensor {name}: the float model gives {error} on the calibration set; finite values are needed;"
                " check the preprocessing, or the model on these samples"
            ) from error


def _join(
    name: str, batches: Sequence[_Batch], padding: PaddingMask
) -> list[tuple[np.ndarray, np.ndarray | None, int]]:
    """A tensor, its mask and its samples in each of the batches, as one where samples are of one shape on axis 0."""
    found = [(values[name], padding.mask_of(name, values[name].shape, real), count) for values, real, count in batches]
    shapes = {value.shape[1:] if value.ndim and len(value) == count else None for value, _, count in found}
    if len(found) < 2 or len(shapes) > 1 or None in shapes or any(mask is not None for _, mask, _ in found):
        return found
    return [(np.concatenate([value for value, *_ in found]), None, sum(count for *_, count in found))]


def _add(histogram: AnyHistogram, values: np.ndarray, mask: np.ndarray | None, count: int, total: int) -> None:
    """Take in a tensor of ``count`` samples of ``total``; mask: of the values that are no padding, None without."""
    shape = count if values.ndim > 0 and len(values) == count else 1, -1
    if mask is None:
        histogram.add_rows(values.reshape(shape), step=choose_step(values.size // count, MOST_VALUES // total))
        return
    add_values(histogram, values, mask, count)
    if isinstance(histogram, Histogram):
        histogram.add_peaks(np.where(mask, values, values.dtype.type(0)).reshape(shape))


def add_values(histogram: AnyHistogram, values: np.ndarray, mask: np.ndarray | None, count: int) -> None:
    """Count all values of a tensor of ``count`` samples, without peaks where they are no steps; see ``_add``."""
    if isinstance(histogram, Histogram):
        histogram.add(select(values, mask))
        return
    shape = count if values.ndim > 0 and len(values) == count else 1, -1
    real = np.broadcast_to(True if mask is None else mask, values.shape).reshape(shape)
    for row, kept in zip(values.reshape(shape), real, strict=True):
        histogram.add_rows(row[kept][None])


def join_all(histograms: Mapping[str, AnyHistogram]) -> dict[str, Histogram]:
    """The histograms as grids are chosen from them."""
    return {name: each.join() if isinstance(each, StepHistogram) else each for name, each in histograms.items()}


def _describe(values: np.ndarray) -> Histogram:
    histogram = Histogram()
    histogram.add(values)
    return histogram


def choose_grids(
    scheme: QuantScheme,
    histograms: Mapping[str, Histogram],
    config: QuantizeConfig,
    known: dict[Any, QParams] | None = None,
    *,
    squashed: Mapping[str, str] | None = None,
) -> Grids:
    """Grids of the scheme's activations as calibrated; tensors that share a grid get one.

    known: grids that were chosen from these histograms for other schemes; new grids are added to it.
    squashed: tensor -> the activation function that alone reads it (``find_squashed``).
    """
    known = {} if known is None else known

    def choose(members: tuple[str, ...], spec: QuantSpec) -> QParams:
        if members[0] in scheme.fixed:
            return fix_grid(*scheme.fixed[members[0]], spec)
        bound = scheme.bound_of(members)
        key = (members, spec, bound)
        if key not in known:
            merged = Histogram()
            for tensor in members:
                merged.merge(histograms[tensor])
            functions = {(squashed or {}).get(tensor) for tensor in members}
            known[key] = choose_grid(
                merged,
                spec,
                kind="min-max" if scheme.constants.issuperset(members) else config.range,
                percentile=config.percentile,
                bound=bound,
                function=functions.pop() if len(functions) == 1 else None,
            )
        return known[key]

    activations = {tensor: choose(scheme.members_of(tensor), spec) for tensor, spec in scheme.activations.items()}
    return Grids(activations, {tensor: choose((tensor,), spec) for tensor, spec in scheme.requantized.items()})


def choose_whole(scheme: QuantScheme, histograms: Mapping[str, Histogram], tensors: Set[str]) -> dict[str, QParams]:
    """Grids of those of the scheme's activations, over all their values and MARGIN more."""
    grids: dict[str, QParams] = {}
    for members in dict.fromkeys(map(scheme.members_of, scheme.activations)):
        if not tensors.isdisjoint(members):
            low = (1 + MARGIN) * min(histograms[t].minimum for t in members)
            high = (1 + MARGIN) * max(histograms[t].maximum for t in members)
            grids |= {t: make_grid(low, high, scheme.activations[t], bound=scheme.bound_of(members)) for t in members}
    return grids
