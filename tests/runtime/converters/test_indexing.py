import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, measure_error, node_error

SIZE = 4


@pytest.mark.parametrize("version", [9, 13])
def test_indices_of_elements_that_are_not_zero_are_columns(version):
    assert node_error("NonZero", version, (make_input(3, 4, 2) > 0).astype(np.float32)) == 0


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -2, 0, 1])
def test_a_triangle_begins_at_any_diagonal(upper, k):
    constants = [] if k is None else [np.int64(k)]
    assert node_error("Trilu", 14, make_input(2, 3, 4), constants, upper=upper) == 0


@st.composite
def places(draw, *, unique):
    """An axis, and indices along it, from either end, for data of SIZE on all of three axes."""
    axis = draw(st.integers(-3, 2))
    numbers = st.permutations(range(SIZE)) if unique else st.lists(st.integers(0, SIZE - 1), min_size=3, max_size=3)
    rows = [draw(numbers)[:3] for _ in range(SIZE * SIZE)]
    indices = np.moveaxis(np.array(rows, np.int64).reshape(SIZE, SIZE, 3), -1, axis)
    return axis, np.where(make_input(*indices.shape) > 0, indices, indices - SIZE)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(version=st.sampled_from([11, 13]), case=places(unique=False))
def test_elements_are_gathered_along_any_axis_from_either_end(version, case):
    axis, indices = case
    assert node_error("GatherElements", version, make_input(SIZE, SIZE, SIZE), [indices], axis=axis) == 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(version=st.sampled_from([11, 13, 16, 18]), case=places(unique=True))
def test_elements_are_scattered_along_any_axis_from_either_end(version, case):
    axis, indices = case
    constants = [indices, make_input(*indices.shape)]
    assert node_error("ScatterElements", version, make_input(SIZE, SIZE, SIZE), constants, axis=axis) == 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(reduction=st.sampled_from(["add", "mul", "min", "max"]), case=places(unique=False))
def test_elements_are_joined_with_those_that_are_there(reduction, case):
    axis, indices = case
    constants, x = [indices, make_input(*indices.shape)], make_input(SIZE, SIZE, SIZE)
    assert node_error("ScatterElements", 18, x, constants, axis=axis, reduction=reduction) < 1e-6


@pytest.mark.parametrize("version", [11, 13, 16, 18])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_slices_are_scattered_to_tuples_of_indices(version, depth):
    indices = np.array([[[0, 1, 2], [3, -1, 0]], [[1, 1, -4], [2, 0, 3]]])[..., :depth]
    updates = make_input(2, 2, *[SIZE] * (3 - depth))
    assert node_error("ScatterND", version, make_input(SIZE, SIZE, SIZE), [indices, updates]) == 0


def test_several_slices_may_be_added_to_one_index():
    indices, updates = np.array([[1], [3], [1]]), make_input(3, 4)
    assert node_error("ScatterND", 16, make_input(4, 4), [indices, updates], reduction="add") < 1e-6


@pytest.mark.parametrize(("op", "reduction"), [("ScatterND", "mul"), ("ScatterElements", "mean")])
def test_an_unknown_reduction_is_refused(op, reduction):
    constants = [np.array([[1]]), make_input(1, 1)]
    with pytest.raises(BlockError, match=f"{op}: reduction {reduction}"):
        to_torch(make_block(op, 18, {"x": make_input(2, 2)}, constants, reduction=reduction))


@pytest.mark.parametrize("version", [9, 11])
@pytest.mark.parametrize("axis", [-1, 0, 1, 2])
def test_one_of_many_is_on_along_any_axis(version, axis):
    feeds = {"x": np.array([[0, 2, 4], [1, 3, 9]])}
    constants = [np.array([5]), np.array([-1.0, 2.0], np.float32)]
    assert measure_error(make_block("OneHot", version, feeds, constants, axis=axis), feeds) == 0
    feeds = {"x": feeds["x"] - 5}
    assert measure_error(make_block("OneHot", 11, feeds, constants, axis=axis), feeds) == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(version=st.sampled_from([11, 24]), axis=st.integers(-3, 2), k=st.integers(1, SIZE), largest=st.integers(0, 1))
def test_of_the_largest_and_smallest_the_first_are_taken(version, axis, k, largest):
    x = np.round(make_input(SIZE, SIZE, SIZE))  # with ties
    assert node_error("TopK", version, x, [np.array([k])], outputs=2, axis=axis, largest=largest) == 0


def test_how_many_are_taken_may_stand_in_an_attribute():
    assert node_error("TopK", 1, make_input(3, 5), outputs=2, k=2, axis=1) == 0
