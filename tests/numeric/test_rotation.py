"""Orthogonal matrices that mix channels."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcalib.numeric.rotation import turn, turn_keeping_ones


@pytest.mark.parametrize("size", [2, 7, 64, 96])
def test_they_are_orthogonal_and_no_entry_is_large(size):
    for matrix in (turn(size, 3), turn_keeping_ones(size, 3)):
        assert np.abs(matrix @ matrix.T - np.eye(size)).max() < 1e-12
    assert np.abs(turn(size)).max() <= np.sqrt(2 / size) + 1e-12


def test_one_of_them_keeps_the_mean_and_the_deviation_of_each_row():
    x = np.random.default_rng(0).normal(size=(5, 48)) + 3
    turned = x @ turn_keeping_ones(48)
    assert np.allclose(turned.mean(1), x.mean(1)) and np.allclose(turned.std(1), x.std(1))
    assert np.abs(turned - x).max() > 1


def test_a_channel_that_sticks_out_is_spread_over_all():
    x = np.random.default_rng(1).normal(size=(100, 96))
    x[:, 5] *= 50
    peaks = np.abs(x @ turn_keeping_ones(96)).max(0)
    assert peaks.max() < 5 * np.median(peaks) and np.abs(x).max(0).max() > 20 * np.median(np.abs(x).max(0))
