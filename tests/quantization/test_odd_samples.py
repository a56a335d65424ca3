"""Samples that reach far beyond all others, and what is made of the rest."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib import QuantizeConfig, quantize
from onnxcalib.data import InputSpec, open_calibration
from onnxcalib.quantization.odd_samples import find_odd, leave_out_odd

VALUES = np.random.default_rng(0).normal(size=(32, 3, 4)).astype(np.float32)


def open_values(values, batch=None):
    return open_calibration(values, [InputSpec("x", np.dtype(np.float32), (batch, 3, 4))])


@pytest.mark.parametrize(
    ("peaks", "odd"),
    [
        ([1] * 7 + [17], [7]),
        ([1] * 7 + [16], []),
        ([100, *[1] * 6], []),  # too few to tell
        ([1, 900, 2, 1, 1, 1000, *[1] * 10], [1, 5]),
        ([1, 900, 2, 1, 1, 1000, *[1] * 9], []),  # two of fifteen are a kind of data
        ([0] * 15 + [1], []),
        ([2.0**number for number in range(32)], []),
    ],
)
def test_a_sample_is_odd_beyond_a_gap(peaks, odd):
    assert find_odd(np.array(peaks, float)) == odd


def test_an_odd_sample_is_left_out_and_named():
    values, lines = VALUES.copy(), []
    values[17, 1, 2] = -50_000
    rest = leave_out_odd(open_values(values), lines.append)
    assert list(rest.indices) == [*range(17), *range(18, 32)]
    assert lines == [
        "input 'x': sample 17 has the value -50000 at [1, 2], where the others end at"
        f" {np.abs(np.delete(VALUES, 17, 0)).max():g}; it is left out; check it, or give more of its kind"
    ]


def test_whole_runs_are_left_out():
    values, lines = VALUES.copy(), []
    values[17] *= 100
    rest = leave_out_odd(open_values(values, 4), lines.append)
    assert list(rest.indices) == [*range(16), *range(20, 32)] and len(lines) == 1


def test_usual_samples_are_all_kept():
    samples = open_values(VALUES * np.linspace(1, 10, 32, dtype=np.float32)[:, None, None])
    assert leave_out_odd(samples, pytest.fail) is samples


def test_an_odd_sample_changes_nothing_in_the_model_but_is_warned_of(build, weigh):
    net = build(
        "g (float[N, 6] x) => (float[N, 3] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, v) }",
        w=weigh(6, 8),
        v=weigh(8, 3),
    )
    samples = np.random.default_rng(1).normal(size=(32, 6)).astype(np.float32)
    wanted = quantize(net, np.delete(samples, 9, 0), QuantizeConfig())
    samples[9, 4] = 50_000
    with pytest.warns(match=r"^input 'x': sample 9 has the value 50000 at \[4\], where the others end at"):
        found = quantize(net, samples, QuantizeConfig())
    assert found.model.SerializeToString() == wanted.model.SerializeToString()
    assert found.report.samples == found.report.measured_on.samples == 31
