import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, measure_error, node_error

TOLERANCE = 1e-5


@st.composite
def pools(draw, *, dilate):
    rank = draw(st.integers(1, 3))
    kernel, strides, dilations = (
        draw(st.lists(st.integers(1, most), min_size=rank, max_size=rank)) for most in (3, 3, 2 if dilate else 1)
    )
    before, after = (
        [draw(st.integers(0, (size - 1) * dilation)) for size, dilation in zip(kernel, dilations, strict=True)]
        for _ in "ab"
    )
    assume(all(pad < size for pad, size in zip((*before, *after), kernel * 2, strict=True)))
    attributes = {"kernel_shape": kernel, "strides": strides, "pads": before + after}
    newer = {"ceil_mode": draw(st.integers(0, 1))} | ({"dilations": dilations} if dilate else {})
    return make_input(2, 3, *draw(st.lists(st.integers(5, 8), min_size=rank, max_size=rank))), attributes, newer


@settings(max_examples=150, deadline=None, derandomize=True)
@given(version=st.sampled_from([7, 10, 11, 19, 22]), case=pools(dilate=False), counts=st.integers(0, 1))
def test_an_average_over_any_window_agrees(version, case, counts):
    x, attributes, newer = case
    newer = newer if version >= 10 else {}
    assert node_error("AveragePool", version, x, **attributes, **newer, count_include_pad=counts) < TOLERANCE


@settings(max_examples=150, deadline=None, derandomize=True)
@given(version=st.sampled_from([8, 10, 11, 12, 22]), case=pools(dilate=True))
def test_a_maximum_over_any_window_agrees(version, case):
    x, attributes, newer = case
    assert node_error("MaxPool", version, x, **attributes, **(newer if version >= 10 else {})) == 0


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("size", [6, 7])
def test_a_pool_pads_by_itself(op, auto_pad, size):
    x = make_input(1, 2, size, size)
    assert node_error(op, 11, x, kernel_shape=[2, 3], strides=[2, 2], auto_pad=auto_pad) < TOLERANCE


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
@pytest.mark.parametrize("version", [1, 22])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_a_global_pool_of_any_rank_agrees(op, version, shape):
    assert node_error(op, version, make_input(*shape)) < TOLERANCE


@pytest.mark.parametrize("op", ["AveragePool", "MaxPool"])
def test_a_pool_over_four_axes_is_refused(op):
    block = make_block(op, 11, {"x": make_input(1, 1, 2, 2, 2, 2)}, kernel_shape=[1, 1, 1, 1])
    with pytest.raises(BlockError, match=f"{op}: 4 spatial axes"):
        to_torch(block)


def test_an_average_with_dilations_is_refused():
    block = make_block("AveragePool", 19, {"x": make_input(1, 1, 5)}, kernel_shape=[2], dilations=[2])
    with pytest.raises(BlockError, match=r"AveragePool: dilations \(2,\)"):
        to_torch(block)


def test_the_indices_of_a_maximum_are_refused_where_they_are_used():
    x = make_input(1, 1, 5)
    block = make_block("MaxPool", 12, {"x": x}, outputs=2, kernel_shape=[2])
    with pytest.raises(BlockError, match="MaxPool: its indices are used"):
        to_torch(block)
    del block.graph.output[1]
    block.graph.node.append(helper.make_node("Relu", ["y0"], ["z"]))
    block.graph.output[0].name = "z"
    assert measure_error(block, {"x": x}) == 0
