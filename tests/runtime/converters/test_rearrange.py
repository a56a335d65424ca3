import pytest

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, node_error


@pytest.mark.parametrize(("version", "modes"), [(1, [{}]), (11, [{}, {"mode": "CRD"}]), (13, [{}, {"mode": "CRD"}])])
def test_depth_becomes_space_in_either_order(version, modes):
    for mode in modes:
        assert node_error("DepthToSpace", version, make_input(2, 12, 3, 4), blocksize=2, **mode) == 0


@pytest.mark.parametrize("version", [1, 13])
def test_space_becomes_depth(version):
    assert node_error("SpaceToDepth", version, make_input(2, 3, 4, 6), blocksize=2) == 0


def test_an_unknown_order_is_refused():
    with pytest.raises(BlockError, match="DepthToSpace: mode RCD"):
        to_torch(make_block("DepthToSpace", 13, {"x": make_input(1, 4, 1, 1)}, blocksize=2, mode="RCD"))
