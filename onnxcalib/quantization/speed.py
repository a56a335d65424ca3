"""Whether the quantized model is slower than the float one here: a few runs of each in turn, on one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto

from ..data import CalibrationSet
from ..graph.stream import model_bytes
from ..numeric.intervals import median_ratio_interval
from ..report import SpeedRecord
from ..runtime.session import Session
from ..runtime.turns import open_as_users, time_in_turn
from .prepared import Prepared

# Rounds of one run of each model, behind a first one that allocates: as many as fit into SECONDS, within these bounds.
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 40, 0.2
# Both models are held at once, and twice while onnxruntime packs their weights, so that larger ones are not timed.
MOST_BYTES, COPIES = 2**30, 3
# Of shorter runs most is the call itself, and of smaller differences the file's size is worth the time.
SHORTEST_MS, SLOWER = 0.5, 0.95


def compare_speed(prepared: Prepared, quantized: ModelProto) -> SpeedRecord | None:
    """Times of both models on the sample of median size, or on the model's fixed batch; None for large models.

    None, too, where the memory that the run may take is short.
    """
    size, budget = model_bytes(prepared.original), prepared.config.memory_bytes
    if size > MOST_BYTES or (budget is not None and COPIES * size > budget):
        return None
    sessions = [open_as_users(model) for model in (prepared.original, quantized)]
    times = time_briefly(sessions, read_median(prepared.samples), seconds=SECONDS, most=MOST_ROUNDS)
    ratios = times[:, 0] / np.maximum(times[:, 1], np.finfo(float).tiny)
    return SpeedRecord(
        float_ms=1e3 * float(np.median(times[:, 0])),
        quantized_ms=1e3 * float(np.median(times[:, 1])),
        speedup=float(np.median(ratios)),
        interval=median_ratio_interval(ratios),
    )


def read_median(samples: CalibrationSet) -> dict[str, Any]:
    """The sample of median size, or as many such samples as the model has in a batch."""
    return samples.read(samples.alike(samples.fixed_batch or 1))


def time_briefly(sessions: Sequence[Session], feeds: Mapping[str, Any], *, seconds: float, most: int) -> np.ndarray:
    """Seconds of the thread, which other load of the machine changes little, (rounds, sessions); see ``time_in_turn``.

    There are LEAST_ROUNDS at least, and ``most`` at most.
    """
    return time_in_turn(sessions, feeds, rounds=(LEAST_ROUNDS, most), seconds=seconds, clock=time.thread_time)


def find_fault_of_speed(record: SpeedRecord | None) -> str | None:
    """The warning of a model that is clearly slower than the float one; None for others."""
    if record is None or record.float_ms < SHORTEST_MS or record.interval[1] >= 1 or record.speedup >= SLOWER:
        return None
    return (
        f"speed: found {record.speedup:.2f} of the float model's here, on one thread; the file is smaller, but slower;"
        " leave operators that stand between unfused Q/DQ in float with --exclude, or keep the float model where speed"
        " is what counts"
    )
