"""What onnxruntime gives beside arrays of numbers comes back as it was, and is no code."""

import numpy as np
import pytest

from onnxcalib.runtime.sequences import read_value, spell_value


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.5, float("inf"), "a\n\ud800", [], [{1: 0.5, 2: -0.0}], [{"a": 1.5}], [[None, "x"], [1]]]
)
def test_plain_values_and_their_lists_and_maps_come_back(value):
    assert read_value(spell_value(value)) == value


def test_arrays_in_sequences_keep_their_types_and_shapes():
    given = [np.float16([[1, 2]]), np.zeros((0, 3), np.int64), np.array(["a", "bc"], object).reshape(2, 1)]
    for wanted, found in zip(given, read_value(spell_value(given)), strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype and found.shape == wanted.shape


def test_what_is_no_value_of_onnxruntime_is_a_fault_of_the_program():
    with pytest.raises(TypeError, match="set is no value of onnxruntime"):
        spell_value([{1}])
