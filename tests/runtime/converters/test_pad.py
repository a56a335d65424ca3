import numpy as np
import pytest
import torch

from onnxcalib.runtime.blocks import BlockError, compare, to_torch
from onnxcalib.runtime.converters.pad import Pad
from tests.runtime.converters.parity import make_block, make_input, node_error

X = make_input(2, 3, 5, 6)
VERSIONS = [2, 11, 13, 18, 19, 21, 23, 24, 25]
PADS = [[0, 0, 1, 2, 0, 0, 2, 0], [0, 1, 0, 0, 0, 2, 0, 0], [0, 0, -1, 1, 0, 0, 0, 2], [1, 1, 1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("pads", PADS)
def test_padding_of_any_axis_agrees(version, mode, pads):
    constants, attributes = ([], {"pads": pads}) if version == 2 else ([np.array(pads)], {})
    assert node_error("Pad", version, X, constants, mode=mode, **attributes) == 0


@pytest.mark.parametrize("version", [v for v in VERSIONS if v >= 19])
@pytest.mark.parametrize("pads", [PADS[0], PADS[1], PADS[3]])
def test_padding_wraps_around(version, pads):
    assert node_error("Pad", version, X, [np.array(pads)], mode="wrap") == 0


@pytest.mark.parametrize("version", [11, 13, 18, 21])
def test_the_value_may_be_an_input(version):
    assert node_error("Pad", version, X, [np.array(PADS[0]), np.float32(2.5)]) == 0


def test_the_value_may_be_an_attribute():
    assert node_error("Pad", 2, X, pads=PADS[0], value=2.5) == 0


@pytest.mark.parametrize("version", [18, 19, 21, 25])
@pytest.mark.parametrize("axes", [[1, 3], [-1, 0], [2, -3]])
def test_pads_may_be_of_some_axes(version, axes):
    assert node_error("Pad", version, X, [np.array([1, 2, 2, 0]), None, np.array(axes)]) == 0


def test_an_unknown_mode_is_refused():
    with pytest.raises(BlockError, match="Pad: mode mirror"):
        to_torch(make_block("Pad", 13, {"x": X}, [np.array(PADS[0])], mode="mirror"))


def test_cropping_one_end_and_wrapping_at_the_other_is_refused():
    with pytest.raises(NotImplementedError, match="Pad: mode wrap with pads -1 and 1"):
        Pad("wrap")(torch.zeros(4), torch.tensor([-1, 1]))


def test_reflecting_more_than_there_is_is_refused():
    block = make_block("Pad", 13, {"x": make_input(3)}, [np.array([0, 3])], mode="reflect")
    with pytest.raises(BlockError, match="Pad: mode reflect, 3 of 3 elements"):
        compare(to_torch(block), block, {"x": make_input(3)}, [])
