"""Which samples are held out, and what is left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from onnxcalib.config import HOLD_OUT_FROM
from onnxcalib.data import InputSpec, open_calibration
from onnxcalib.data.holdout import MOST, ROW, SHARE, choose_held_out, hold_out


def open_numbers(count: int, batch: int | None = None):
    """A set whose sample i is the number i."""
    values = np.arange(count, dtype=np.float32)[:, None]
    return open_calibration(values, [InputSpec("x", np.dtype(np.float32), (batch, 1))])


def test_fewer_samples_than_the_least_are_all_used():
    samples = open_numbers(HOLD_OUT_FROM - 1)
    assert hold_out(samples) == (samples, None)


@pytest.mark.parametrize("count", [64, 65, 100, 256, 1000, 3000])
def test_a_quarter_is_held_out_in_rows_that_are_evenly_spread(count):
    chosen = choose_held_out(count, 1)
    assert len(chosen) == min(count // SHARE, MOST) // ROW * ROW
    assert chosen == sorted(set(chosen)) and 0 < chosen[0] and chosen[-1] < count
    starts = chosen[::ROW]
    assert chosen == [start + i for start in starts for i in range(ROW)]
    gaps = {b - a for a, b in itertools.pairwise(starts)}
    assert max(gaps, default=ROW) - min(gaps, default=ROW) <= ROW


@pytest.mark.parametrize(("count", "per_run", "held"), [(66, 3, 9), (65, 5, 10), (64, 16, 16), (96, 32, 0)])
def test_whole_runs_are_held_out(count, per_run, held):
    chosen = choose_held_out(count, per_run)
    assert len(chosen) == held
    assert all(chosen[i + 1] == chosen[i] + 1 for i in range(len(chosen) - 1) if (i + 1) % per_run)
    assert all(chosen[i] % per_run == 0 for i in range(0, len(chosen), per_run))


def test_samples_keep_their_files_their_labels_and_their_shapes(tmp_path):
    for number in range(4):
        image = np.full((1, 1, 2, 2 + number % 2), number, np.float32)
        np.savez(tmp_path / f"{number}.npz", x=image, label=np.array([10 + number]))
    samples = open_calibration(tmp_path, [InputSpec("x", np.dtype(np.float32), (None, 1, 2, None))])
    assert samples.names is not None and samples.labels is not None and samples.largest == 1
    taken = samples.take([3, 0]).take([1, 0])
    assert taken.names == ("0.npz", "3.npz") and list(taken.labels) == [10, 13] and taken.largest == 1
    assert [run for run in taken.split(8)] == [[0], [1]] and taken.alike(3) == [1, 1, 1]
    assert taken.read([1])["x"].max() == 3


def test_the_two_sets_share_no_sample_and_lose_none():
    used, held = hold_out(open_numbers(64))
    assert held is not None
    numbers = [[float(v) for run in each.batches(7) for v in run["x"][:, 0]] for each in (used, held)]
    assert numbers[1] == list(held.indices) == [*range(16, 24), *range(48, 56)]
    assert sorted(numbers[0] + numbers[1]) == list(range(64))
