import numpy as np
import pytest

from tests.runtime.converters.parity import make_input, node_error

X = make_input(2, 3, 4)
THIN = make_input(1, 3, 1, 4, 1)


def place_axes(version, axes):
    """Axes as an input since 13, as an attribute before: (constants, attributes)."""
    return ([np.array(axes)], {}) if version >= 13 else ([], {"axes": axes})


@pytest.mark.parametrize("version", [5, 13, 14, 19, 21, 23, 24, 25])
@pytest.mark.parametrize("shape", [[6, 4], [0, -1], [2, 0, 2, 2], [-1], [0, 0, 0]])
def test_reshape_keeps_the_size_at_a_zero(version, shape):
    assert node_error("Reshape", version, X, [np.array(shape)]) == 0


@pytest.mark.parametrize("version", [14, 19, 21])
def test_reshape_makes_a_zero_an_empty_axis_where_told(version):
    assert node_error("Reshape", version, make_input(0, 3), [np.array([3, 0])], allowzero=1) == 0


@pytest.mark.parametrize("version", [1, 9, 11, 13, 21, 23, 24, 25])
def test_flatten_at_any_axis(version):
    for axis in (0, 1, 2, 3) + ((-1, -3) if version >= 11 else ()):
        assert node_error("Flatten", version, X, axis=axis) == 0


@pytest.mark.parametrize("version", [1, 11, 13, 21, 23, 24, 25])
def test_squeeze_of_any_axes(version):
    assert node_error("Squeeze", version, THIN) == 0
    for axes in ([0], [4, 0], [0, 2, 4]) + (([2, -5], [-1, -3]) if version >= 11 else ()):
        constants, attributes = place_axes(version, axes)
        assert node_error("Squeeze", version, THIN, constants, **attributes) == 0


@pytest.mark.parametrize("version", [1, 11, 13, 21, 23, 24, 25])
def test_unsqueeze_at_any_axes_of_the_result(version):
    for axes in ([0], [3], [0, 4], [2, 1]) + (([-1, -2], [4, -5]) if version >= 11 else ()):
        constants, attributes = place_axes(version, axes)
        assert node_error("Unsqueeze", version, X, constants, **attributes) == 0
