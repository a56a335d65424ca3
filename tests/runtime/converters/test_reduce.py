import numpy as np
import pytest
from onnx import defs

from tests.runtime.converters.parity import make_input, node_error

TOLERANCE = 1e-5
LATEST = 25  # newer versions are not registered
OPS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()
VERSIONS = sorted(
    (schema.name, schema.since_version)
    for schema in defs.get_all_schemas_with_history()
    if schema.domain == "" and schema.name in [f"Reduce{op}" for op in OPS] and schema.since_version <= LATEST
)
X = np.abs(make_input(2, 3, 4)) + 0.1


def takes_axes_as_input(op, version):
    return version >= (13 if op == "ReduceSum" else 18)


@pytest.mark.parametrize(("op", "version"), VERSIONS)
@pytest.mark.parametrize(("axes", "keepdims"), [(None, 0), ([1], 1), ([-1, -2], 0), ([0, -1], 0), ([2, 1], 1)])
def test_a_reduction_over_any_axes_agrees(op, version, axes, keepdims):
    constants, attributes = [], {}
    if axes and version == 1:  # which knows no negative axes
        axes = [axis % X.ndim for axis in axes]
    if axes and takes_axes_as_input(op, version):
        constants = [np.array(axes)]
    elif axes:
        attributes = {"axes": axes}
    assert node_error(op, version, X, constants, keepdims=keepdims, **attributes) < TOLERANCE


@pytest.mark.parametrize(("op", "version"), [case for case in VERSIONS if takes_axes_as_input(*case)])
@pytest.mark.parametrize("noop", [0, 1])
def test_no_axes_are_all_or_none(op, version, noop):
    for constants in ([], [np.zeros(0, np.int64)]):
        assert node_error(op, version, X, constants, noop_with_empty_axes=noop) < TOLERANCE
