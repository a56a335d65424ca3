import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.runtime.blocks import BlockError, compare, to_torch
from tests.runtime.converters.parity import make_block, make_input, node_error

TOLERANCE = 1e-5
X = make_input(1, 2, 5, 7)
EMPTY = np.zeros(0, np.float32)
COORDINATES = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def scaled(*scales):
    return [EMPTY, np.array(scales, np.float32)]


def sized(*sizes):
    return [EMPTY, EMPTY, np.array(sizes)]


@pytest.mark.parametrize("version", [11, 13, 18, 19])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("constants", [scaled(1, 1, 2, 2), scaled(1, 1, 3, 1), scaled(1, 1, 2, 4), sized(1, 2, 10, 14)])
def test_the_nearest_element_is_found_for_every_rounding(version, coordinates, constants):
    for rounding in ROUNDINGS:
        attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
        assert node_error("Resize", version, X, constants, mode="nearest", **attributes) == 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    scales=st.tuples(*[st.floats(0.25, 3.0, width=32)] * 2),
    coordinates=st.sampled_from(COORDINATES),
    rounding=st.sampled_from(ROUNDINGS),
)
def test_the_nearest_element_at_any_scale_agrees_or_is_refused(scales, coordinates, rounding):
    attributes = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    try:
        assert node_error("Resize", 19, X, scaled(1, 1, *scales), mode="nearest", **attributes) == 0
    except BlockError as refusal:
        assert "a coordinate lies between two elements" in str(refusal)


@pytest.mark.parametrize("version", [11, 13, 18, 19])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize(
    "constants",
    [scaled(1, 1, 2, 2), scaled(1, 1, 0.5, 0.5), scaled(1, 1, 1.5, 0.7), sized(1, 2, 1, 1), sized(1, 2, 6, 13)],
)
def test_linear_interpolation_agrees(version, coordinates, constants):
    attributes = {"coordinate_transformation_mode": coordinates}
    assert node_error("Resize", version, X, constants, mode="linear", **attributes) < TOLERANCE


@pytest.mark.parametrize("scale", [2.0, 1.5, 0.7])
def test_linear_interpolation_at_symmetric_coordinates_agrees(scale):
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}
    assert node_error("Resize", 19, X, scaled(1, 1, scale, scale), **attributes) < TOLERANCE


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    version=st.sampled_from([11, 13, 18, 19]),
    coordinates=st.sampled_from(COORDINATES),
    constants=st.one_of(
        st.tuples(*[st.floats(0.5, 3.0, width=32)] * 2).map(lambda pair: scaled(1, 1, *pair)),
        st.tuples(*[st.integers(2, 15)] * 2).map(lambda pair: sized(1, 2, *pair)),
    ),
    bend=st.sampled_from([-0.75, -0.5]),
    inside=st.integers(0, 1),
)
def test_cubic_interpolation_agrees(version, coordinates, constants, bend, inside):
    attributes = {"coordinate_transformation_mode": coordinates, "cubic_coeff_a": bend, "exclude_outside": inside}
    assert node_error("Resize", version, X, constants, mode="cubic", **attributes) < 1e-4


@pytest.mark.parametrize("x", [make_input(1, 2, 5), make_input(1, 1, 3, 4, 5)])
def test_one_and_three_axes_are_resized_too(x):
    constants = [None, np.array([1, 1, *[2] * (x.ndim - 2)], np.float32)]
    assert node_error("Resize", 13, x, constants, mode="nearest") == 0


@pytest.mark.parametrize("version", [18, 19])
@pytest.mark.parametrize("constants", [[None, np.array([2, 3], np.float32)], [None, None, np.array([10, 9])]])
def test_scales_and_sizes_may_be_of_some_axes(version, constants):
    for axes in ([2, 3], [-2, -1]):
        assert node_error("Resize", version, X, constants, mode="linear", axes=axes) < TOLERANCE


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "version"), [("Resize", 10), ("Upsample", 9)])
def test_the_first_versions_take_scales_alone(op, version, mode):
    assert node_error(op, version, X, [np.array([1, 1, 2, 1.5], np.float32)], mode=mode) < TOLERANCE


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"mode": "quintic"}, "Resize: mode quintic"),
        ({"mode": "linear", "antialias": 1}, "Resize: antialias"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "Resize: keep_aspect_ratio_policy not_larger"),
        ({"coordinate_transformation_mode": "tf_crop_and_resize"}, "mode tf_crop_and_resize"),
        ({"coordinate_transformation_mode": "half_pixel_symmetric"}, "mode half_pixel_symmetric, nearest"),
        ({"nearest_mode": "up"}, "Resize: nearest_mode up"),
    ],
)
def test_a_mode_without_an_exact_equal_is_refused(attributes, text):
    with pytest.raises(BlockError, match=text):
        to_torch(make_block("Resize", 19, {"x": X}, scaled(1, 1, 2, 2), **attributes))


def test_an_unknown_mode_of_upsample_is_refused():
    with pytest.raises(BlockError, match="Upsample: mode cubic"):
        to_torch(make_block("Upsample", 9, {"x": X}, [np.ones(4, np.float32)], mode="cubic"))


def test_a_coordinate_that_float32_rounds_to_either_side_is_refused():
    attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "round_prefer_ceil"}
    block = make_block("Resize", 13, {"x": X}, sized(1, 2, 3, 4), mode="nearest", **attributes)
    with pytest.raises(BlockError, match="Resize: a coordinate lies between two elements"):
        compare(to_torch(block), block, {"x": X}, [])
