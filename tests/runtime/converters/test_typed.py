import numpy as np
import pytest
import torch

from onnxcalib.runtime.blocks import to_torch
from tests.runtime.converters.parity import make_block, make_input, measure_error, node_error


@pytest.mark.parametrize("version", [7, 12, 13, 15])
@pytest.mark.parametrize("exponent", [np.float32(3), make_input(3)])
def test_a_power_agrees(version, exponent):
    assert node_error("Pow", version, np.abs(make_input(2, 3)), [exponent]) < 1e-6


@pytest.mark.parametrize("version", [12, 13, 15])
def test_a_power_of_integers_is_an_integer(version):
    feeds = {"x": np.array([1, 2, 3])}
    block = make_block("Pow", version, feeds, [np.float32(2)])
    assert measure_error(block, feeds) == 0
    assert to_torch(block)(torch.from_numpy(feeds["x"]))[0].dtype == torch.int64


@pytest.mark.parametrize("version", [15, 19, 21, 23])
@pytest.mark.parametrize("kind", [np.int64, np.float64, bool])
def test_a_tensor_takes_the_type_of_another(version, kind):
    assert node_error("CastLike", version, 3 * make_input(2, 3), [np.ones(1, kind)]) == 0


@pytest.mark.parametrize("version", [10, 20])
@pytest.mark.parametrize(("negative", "positive"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_infinities_of_either_sign_are_told(version, negative, positive):
    x = np.array([1, np.inf, -np.inf, np.nan], np.float32)
    feeds = {"x": x}
    block = make_block("IsInf", version, feeds, detect_negative=negative, detect_positive=positive)
    found = to_torch(block)(torch.from_numpy(x))[0].tolist()
    assert found == [False, bool(positive), bool(negative), False]
    assert measure_error(block, feeds) == 0


@pytest.mark.parametrize("version", [1, 13, 15, 19, 21, 23])
def test_a_shape_is_that_of_the_input(version):
    assert node_error("Shape", version, make_input(2, 3, 4)) == 0


@pytest.mark.parametrize(("start", "end"), [(1, 3), (-2, 9), (0, -1), (2, 1)])
def test_a_part_of_a_shape_is_of_int64_also_where_it_is_empty(start, end):
    block = make_block("Shape", 15, {"x": make_input(2, 3, 4)}, start=start, end=end)
    assert measure_error(block, {"x": make_input(2, 3, 4)}) == 0
    assert to_torch(block)(torch.zeros(2, 3, 4))[0].dtype == torch.int64


@pytest.mark.parametrize("version", [1, 13, 19, 21, 23])
def test_a_size_is_the_number_of_elements(version):
    assert node_error("Size", version, make_input(2, 3, 4)) == 0
