"""Time both models on one thread each, in turn, so that other load of the machine slows both alike."""

from __future__ import annotations

import time

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..errors import GateError
from ..numeric.intervals import Interval, median_ratio_interval
from ..runtime.foreign import open_foreign
from ..runtime.turns import open_as_users, time_in_turn
from ..verdict import LatencyRecord

# The first runs allocate memory and are not counted.
WARM_UP = 3
# A round is one run of each model. There are as many rounds as fit into SECONDS, within these bounds: medians of fewer
# than the lower one differ from call to call. 500 rounds of a small model take less time than a change of the load.
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 25, 3000, 3.0


def clock_on_device(
    package: str, models: tuple[ModelProto, ModelProto], samples: CalibrationSet, seconds: float
) -> tuple[float, Interval]:
    """How many times as fast the second of both models is in an installed runtime, on one sample, and its interval.

    seconds: in which the runtime must have compiled a model, and made each run. Raises ModelError.
    """
    feeds, times = samples.read(samples.alike(samples.fixed_batch or 1)), list[tuple[float, float]]()
    with (
        open_foreign(package, models[0], feeds, 1, seconds=seconds) as first,
        open_foreign(package, models[1], feeds, 1, seconds=seconds) as second,
    ):
        for _ in range(WARM_UP):
            first.clock(feeds), second.clock(feeds)
        end = time.perf_counter() + SECONDS
        while len(times) < LEAST_ROUNDS or (len(times) < MOST_ROUNDS and time.perf_counter() < end):
            times.append((first.clock(feeds), second.clock(feeds)))
    ratios = np.divide(*np.array(times).T)
    return float(np.median(ratios)), median_ratio_interval(ratios)


def clock(original: ModelProto, quantized: ModelProto, samples: CalibrationSet, batch: int) -> LatencyRecord:
    """Median times of both models on ``batch`` samples of one shape, or on the batch size that the model fixes.

    The interval of the speedup is as wide as the load of the machine drifts while the models are timed.

    Raises GateError for a batch that the model cannot run.
    """
    if samples.fixed_batch is not None:
        if batch not in (1, samples.fixed_batch):
            raise GateError(
                f"batch: found {batch}; a run of this model on these samples takes {samples.fixed_batch}; leave --batch"
                " out"
            )
        batch = samples.fixed_batch
    feeds = samples.read(samples.alike(batch))
    sessions = [open_as_users(model) for model in (original, quantized)]
    rounds = LEAST_ROUNDS, MOST_ROUNDS
    times = time_in_turn(sessions, feeds, rounds=rounds, seconds=SECONDS, clock=time.perf_counter, warm_up=WARM_UP).T
    low, median, high = np.percentile(times, (25, 50, 75), axis=1)
    spread = (high - low) / median
    return LatencyRecord(
        batch=batch,
        runs=times.shape[1],
        float_ms=1e3 * float(median[0]),
        quantized_ms=1e3 * float(median[1]),
        float_spread=float(spread[0]),
        quantized_spread=float(spread[1]),
        speedup=float(np.median(times[0] / times[1])),
        speedup_interval=median_ratio_interval(times[0] / times[1]),
    )
