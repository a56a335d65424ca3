import numpy as np
import pytest

from onnxcalib.numeric.histogram import Histogram
from onnxcalib.numeric.ranges import choose_grid
from onnxcalib.numeric.rounding import fake_quantize
from onnxcalib.numeric.step_histogram import LEAST_POWER, TIMES, StepHistogram
from onnxcalib.spec import QuantSpec

UINT8 = QuantSpec(bits=8, signed=False, symmetric=False)


def collect(*batches):
    found = StepHistogram()
    for batch in batches:
        found.add_rows(batch)
    return found


def count(histogram, low, high):
    return int(histogram.counts[(histogram.centres > low) & (histogram.centres < high)].sum())


def test_a_value_counts_inversely_to_the_power_of_its_step():
    joined = collect(np.full((1, 5), 8.0), np.full((4, 5), 2.0)).join()  # mean power 16
    loud, quiet = count(joined, 7.9, 8.1) / 5, count(joined, 1.9, 2.1) / 20
    assert quiet / loud == pytest.approx(16, rel=0.01)
    assert TIMES / 4 / 1.5 < loud < TIMES / 4 * 1.5


def test_steps_of_next_to_no_signal_count_as_those_of_the_least_power():
    joined = collect(np.full((1, 5), 8.0), np.full((1, 5), 0.25), np.zeros((1, 5))).join()
    assert count(joined, -0.1, 0.3) == pytest.approx(10 * TIMES / LEAST_POWER, rel=0.01)


def test_ends_and_peaks_are_those_of_all_steps_in_their_order():
    rows = np.array([[1, -2, 0.5], [100, 3, 4], [0.1, 0.2, 0.3]], np.float32)
    joined = collect(rows[:2], rows[2:]).join()
    assert (joined.minimum, joined.maximum) == (-2, 100)
    np.testing.assert_array_equal(joined.peaks, np.float32([[-2, 0, 0], [1, 100, 0.3]]))


def test_nothing_and_nothing_but_zeros_are_taken():
    assert StepHistogram().join().counts.sum() == 0
    assert collect(np.zeros((3, 4), np.float32)).join().maximum == 0


def test_values_that_are_not_finite_are_refused():
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="values that are not finite"):
            collect(np.array([[1, bad]], np.float32))


def test_the_grid_loses_less_of_quiet_steps_than_that_of_all_values_alike(draw):
    rows = np.abs(draw(64, 400)) * np.geomspace(0.02, 1, 64)[:, None].astype(np.float32)
    rows[-1, 0] = 12  # which few others come near to
    steps = collect(rows)
    alike = Histogram()
    alike.add_rows(rows)

    def lose(histogram):
        grid = choose_grid(histogram, UINT8)
        error = fake_quantize(rows, grid.scale, grid.zero_point, grid.spec) - rows
        return float((np.square(error).sum(1) / np.square(rows).sum(1)).mean())

    assert lose(steps.join()) < 0.5 * lose(alike)
