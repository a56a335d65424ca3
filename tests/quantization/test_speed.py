"""The speed of both models, and the warning of a slower one."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, emit, prepare, reconstruct
from onnxcalib.quantization.speed import compare_speed, find_fault_of_speed
from onnxcalib.report import SpeedRecord


def record(speedup, interval, float_ms=2.0):
    return SpeedRecord(float_ms=float_ms, quantized_ms=float_ms / speedup, speedup=speedup, interval=interval)


def test_a_model_that_is_clearly_slower_is_warned_of():
    text = find_fault_of_speed(record(0.7, (0.65, 0.75)))
    assert text is not None and text.startswith("speed: found 0.70 of the float model's here, on one thread; the file")
    assert "--exclude" in text


@pytest.mark.parametrize(
    "found",
    [
        None,
        record(1.8, (1.7, 1.9)),
        record(0.9, (0.7, 1.1)),  # within the noise
        record(0.97, (0.96, 0.98)),  # hardly slower
        record(0.5, (0.4, 0.6), float_ms=0.05),  # the call itself
    ],
)
def test_others_are_not(found):
    assert find_fault_of_speed(found) is None


def test_both_models_are_timed(build, weigh, draw):
    net = build("g (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { y = Conv (x, w) }", w=weigh(4, 3, 1, 1))
    prepared = prepare(net, draw(16, 3, 8, 8), QuantizeConfig(reconstruct=False))
    found = compare_speed(prepared, emit(prepared, reconstruct(prepared)))
    assert found is not None and 0 < found.interval[0] <= found.speedup <= found.interval[1] < np.inf
    assert found.float_ms > 0 and found.quantized_ms > 0
