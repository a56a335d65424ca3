"""Calibrate: stream the calibration set through the float model and give every planned tensor its first grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, helper

from ..config import QuantizeConfig
from ..data import CalibrationSet
from ..errors import DataError
from ..numeric.histogram import Histogram
from ..numeric.ranges import choose_grid
from ..runtime.session import Session
from ..spec import QParams, QuantPlan

# All planned activations of one batch may take so many bytes.
BATCH_BYTES = 128 * 2**20
MOST_SAMPLES = 32


def with_outputs(model: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """A copy of the model that gives ``tensors`` too (those that it computes)."""
    copy = ModelProto()
    copy.CopyFrom(model)
    given = {o.name for o in copy.graph.output}
    made = {t for n in copy.graph.node for t in n.output}
    wanted = [name for name in dict.fromkeys(tensors) if name in made - given]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    return copy


def batch_size(session: Session, samples: CalibrationSet, limit: int = BATCH_BYTES) -> int:
    """How many samples at once keep the session's outputs below ``limit`` bytes, measured on one sample.

    Sequences are left out of the count.
    """
    if samples.fixed_batch is not None:
        return samples.fixed_batch
    outputs = session.run(samples.read([0]))
    size = sum(value.nbytes for value in outputs.values() if isinstance(value, np.ndarray))
    return int(np.clip(limit // max(size, 1), 1, MOST_SAMPLES))


def collect_histograms(
    model: ModelProto, tensors: Sequence[str], samples: CalibrationSet, *, threads: int = 0
) -> dict[str, Histogram]:
    """Histogram of every tensor named, over the whole set, in one streamed pass.

    Raises DataError where the float model gives a value that is not finite.
    """
    session = Session(with_outputs(model, tensors), name="the prepared model", threads=threads)
    histograms = {name: Histogram() for name in tensors}
    made = [name for name in session.outputs if name in histograms]
    for feeds in samples.batches(batch_size(session, samples)):
        values = {**feeds, **session.run(feeds, made)}
        for name, histogram in histograms.items():
            try:
                histogram.add(values[name])
            except ValueError as error:
                raise DataError(
                    f"tensor {name}: the float model gives {error} on the calibration set; finite values are needed;"
                    " check the preprocessing, or the model on these samples"
                ) from error
    return histograms


def choose_grids(
    plan: QuantPlan, histograms: dict[str, Histogram], config: QuantizeConfig
) -> tuple[dict[str, QParams], dict[str, QParams]]:
    """First grids of the planned activations and of their narrowed copies; tensors that share a grid get one."""
    sets = {t: members for members in plan.shared for t in members}
    chosen: dict[tuple[str, ...], QParams] = {}
    activations: dict[str, QParams] = {}
    for tensor, spec in plan.activations.items():
        members = sets.get(tensor, (tensor,))
        if members not in chosen:
            bounds = [plan.nonnegative[t] for t in members if t in plan.nonnegative]
            chosen[members] = _choose(members, histograms, spec, config, min(bounds, default=None))
        activations[tensor] = chosen[members]
    narrowed = {
        tensor: _choose((tensor,), histograms, spec, config, plan.nonnegative.get(tensor))
        for tensor, spec in plan.narrowed.items()
    }
    return activations, narrowed


def _choose(members, histograms, spec, config: QuantizeConfig, bound: float | None) -> QParams:
    merged = Histogram()
    for tensor in members:
        merged.merge(histograms[tensor])
    return choose_grid(merged, spec, kind=config.range, percentile=config.percentile, bound=bound)
