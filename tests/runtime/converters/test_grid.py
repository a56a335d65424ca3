import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, node_error

MODES = {16: ("bilinear", "nearest", "bicubic"), 20: ("linear", "nearest", "cubic"), 22: ("linear", "nearest", "cubic")}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    version=st.sampled_from([16, 20, 22]),
    place=st.integers(0, 2),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    corners=st.integers(0, 1),
    size=st.integers(2, 6),
)
def test_values_are_sampled_at_points_inside_and_outside(version, place, padding, corners, size):
    x, grid = make_input(2, 3, size, 5), make_input(2, 4, 3, 2)
    attributes = {"mode": MODES[version][place], "padding_mode": padding, "align_corners": corners}
    assert node_error("GridSample", version, x, [grid], **attributes) < 1e-4


def test_a_third_axis_is_sampled():
    x, grid = make_input(2, 3, 4, 5, 6), make_input(2, 2, 3, 4, 3)
    assert node_error("GridSample", 20, x, [grid], mode="linear") < 1e-5


def test_an_unknown_mode_is_refused():
    block = make_block("GridSample", 20, {"x": make_input(1, 1, 2, 2)}, [make_input(1, 1, 1, 2)], mode="quintic")
    with pytest.raises(BlockError, match="GridSample: mode quintic"):
        to_torch(block)
