import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.runtime.blocks import BlockError, compare, to_torch
from tests.runtime.converters.parity import make_block, make_input, node_error

X = make_input(2, 5, 6)
BOUNDS = st.sampled_from([-(2**63) + 1, -9, -6, -3, -1, 0, 1, 2, 4, 5, 6, 9, 2**31 - 1, 2**63 - 1])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    version=st.sampled_from([10, 11, 13]),
    starts=st.tuples(BOUNDS, BOUNDS),
    ends=st.tuples(BOUNDS, BOUNDS),
    steps=st.tuples(*[st.sampled_from([-3, -2, -1, 1, 2, 3])] * 2),
)
def test_a_slice_with_any_bounds_and_steps_agrees(version, starts, ends, steps):
    for axes in ([1, 2], [-1, 1]):
        constants = [np.array(values, np.int64) for values in (starts, ends, axes, steps)]
        assert node_error("Slice", version, X, constants) == 0


@pytest.mark.parametrize("version", [10, 13])
def test_axes_and_steps_may_be_left_out(version):
    assert node_error("Slice", version, X, [np.array([0, 1]), np.array([1, -1])]) == 0
    assert node_error("Slice", version, X, [np.array([1]), np.array([4]), None, np.array([1])]) == 0


@pytest.mark.parametrize("attributes", [{}, {"axes": [1, 2]}, {"axes": [2, 0]}])
def test_the_bounds_may_be_attributes(attributes):
    assert node_error("Slice", 1, X, starts=[0, 1], ends=[2, 100], **attributes) == 0


@pytest.mark.parametrize("version", [2, 11, 13, 18])
@pytest.mark.parametrize("axis", [1, -2])
def test_a_split_into_given_sizes_agrees(version, axis):
    constants, attributes = ([np.array([1, 4])], {}) if version >= 13 else ([], {"split": [1, 4]})
    assert node_error("Split", version, X, constants, 2, axis=axis, **attributes) == 0


@pytest.mark.parametrize("version", [2, 11, 13, 18])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_split_into_equal_parts_agrees(version, parts):
    attributes = {"num_outputs": parts} if version == 18 else {}
    assert node_error("Split", version, X, outputs=parts, axis=2, **attributes) == 0


@pytest.mark.parametrize("parts", [2, 3])
def test_the_last_of_equal_parts_may_be_smaller(parts):
    assert node_error("Split", 18, X, outputs=parts, axis=1, num_outputs=parts) == 0


def test_a_split_into_other_than_its_outputs_is_refused():
    block = make_block("Split", 18, {"x": X}, outputs=4, axis=1, num_outputs=4)
    with pytest.raises(BlockError, match="Split: 5 elements make 3 parts, not 4"):
        compare(to_torch(block), block, {"x": X}, [])
