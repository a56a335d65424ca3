import numpy as np
import pytest

from onnxcalib.config import DataConfig
from onnxcalib.data import InputSpec, open_calibration
from onnxcalib.quantization import float_outputs
from onnxcalib.quantization.float_outputs import FloatOutputs


@pytest.fixture
def samples():
    return open_calibration(
        np.zeros((5, 2), np.float32), [InputSpec("x", np.dtype(np.float32), (None, 2))], DataConfig()
    )


def keep(values):
    found = FloatOutputs()
    found.start(2)
    for value in values:
        found.add({"y": value})
    return found


def test_the_outputs_of_all_batches_are_given_in_their_order(samples):
    values = [np.full((2, 3), number, np.float32) for number in range(3)]
    assert [each["y"][0, 0] for each in keep(values).of(samples)] == [0, 1, 2]


def test_none_are_given_where_some_are_missing_or_large_or_no_arrays(samples, monkeypatch):
    values = [np.zeros((2, 3), np.float32)] * 3
    assert FloatOutputs().of(samples) is None
    assert keep(values[:2]).of(samples) is None
    assert keep([values[0], [values[1]], values[2]]).of(samples) is None
    monkeypatch.setattr(float_outputs, "MOST_BYTES", 3 * values[0].nbytes - 1)
    assert keep(values).of(samples) is None


def test_a_new_start_forgets_what_was_kept(samples):
    found = keep([np.zeros(2)] * 3)
    found.start(2)
    assert found.of(samples) is None
