"""Whether the quantized model is slower than the float one here: a few runs of each in turn, on one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto

from ..graph.save import model_bytes
from ..numeric.intervals import median_ratio_interval
from ..report import SpeedRecord
from ..runtime.session import Session
from .prepared import Prepared

# Rounds of one run of each model, behind a first one that allocates: as many as fit into SECONDS, within these bounds.
LEAST_ROUNDS, MOST_ROUNDS, SECONDS = 5, 40, 0.4
# Both models are held at once, so that larger ones are not timed.
MOST_BYTES = 2**30
# Of shorter runs most is the call itself, and of smaller differences the file's size is worth the time.
SHORTEST_MS, SLOWER = 0.5, 0.95


def compare_speed(prepared: Prepared, quantized: ModelProto) -> SpeedRecord | None:
    """Times of both models on the sample of median size, or on the batch that the model fixes; None for large models.

    The time is that of the thread, which other load of the machine changes little.
    """
    if model_bytes(prepared.original) > MOST_BYTES:
        return None
    samples = prepared.samples
    feeds = samples.read(samples.alike(samples.fixed_batch or 1))
    sessions = [Session(model, deployed=True, threads=1) for model in (prepared.original, quantized)]
    rounds: list[list[float]] = []
    end = np.inf
    while len(rounds) <= LEAST_ROUNDS or (len(rounds) <= MOST_ROUNDS and time.perf_counter() < end):
        if len(rounds) == 1:
            end = time.perf_counter() + SECONDS
        rounds.append([_time(session, feeds) for session in sessions])
    times = np.array(rounds[1:])
    ratios = times[:, 0] / np.maximum(times[:, 1], np.finfo(float).tiny)
    return SpeedRecord(
        float_ms=1e3 * float(np.median(times[:, 0])),
        quantized_ms=1e3 * float(np.median(times[:, 1])),
        speedup=float(np.median(ratios)),
        interval=median_ratio_interval(ratios),
    )


def _time(session: Session, feeds: Mapping[str, Any]) -> float:
    start = time.thread_time()
    session.run(feeds)
    return time.thread_time() - start


def find_fault_of_speed(record: SpeedRecord | None) -> str | None:
    """The warning of a model that is clearly slower than the float one; None for others."""
    if record is None or record.float_ms < SHORTEST_MS or record.interval[1] >= 1 or record.speedup >= SLOWER:
        return None
    return (
        f"speed: found {record.speedup:.2f} of the float model's here, on one thread; the file is smaller, but slower;"
        " leave operators that stand between unfused Q/DQ in float with --exclude, or keep the float model where speed"
        " is what counts"
    )
