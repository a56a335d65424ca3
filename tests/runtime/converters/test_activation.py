import pytest

from onnxcalib.runtime.blocks import BlockError, to_torch
from tests.runtime.converters.parity import make_block, make_input, node_error

TOLERANCE = 1e-6
X = make_input(2, 3, 4, 5) * 3


@pytest.mark.parametrize("version", [11, 12, 13])
@pytest.mark.parametrize("bounds", [(), (-0.5,), (None, 0.5), (-1.0, 1.0), (0.0, 6.0)])
def test_clip_has_either_bound_or_both_or_none(version, bounds):
    assert node_error("Clip", version, X, [b if b is None else X.dtype.type(b) for b in bounds]) == 0


@pytest.mark.parametrize("version", [7, 9, 16])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 1, 1), (4, 1), (1, 3, 1, 1), (3, 4, 5)])
def test_a_slope_of_prelu_broadcasts_from_the_right(version, shape):
    assert node_error("PRelu", version, X, [make_input(*shape)]) < TOLERANCE


def test_a_slope_of_prelu_per_column_is_not_taken_for_one_per_channel():
    assert node_error("PRelu", 16, make_input(2, 5, 4, 5), [make_input(5)]) < TOLERANCE


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_is_by_erf_or_tanh(approximate):
    assert node_error("Gelu", 20, X, approximate=approximate) < TOLERANCE


@pytest.mark.parametrize("version", [18, 22])
def test_mish(version):
    assert node_error("Mish", version, X) < TOLERANCE


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_swish_has_its_slope_inside_the_sigmoid(alpha):
    assert node_error("Swish", 24, X, alpha=alpha) < TOLERANCE


@pytest.mark.parametrize("version", [10, 22])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_thresholded_relu(version, alpha):
    assert node_error("ThresholdedRelu", version, X, alpha=alpha) == 0


@pytest.mark.parametrize(
    ("op", "version", "attributes"),
    [
        ("Relu", 6, {}),
        ("Relu", 13, {}),
        ("Relu", 14, {}),
        ("LeakyRelu", 6, {"alpha": 0.2}),
        ("LeakyRelu", 16, {"alpha": 0.2}),
        ("Sigmoid", 6, {}),
        ("Sigmoid", 13, {}),
        ("Tanh", 6, {}),
        ("Tanh", 13, {}),
        ("Erf", 9, {}),
        ("Erf", 13, {}),
        ("Softmax", 11, {"axis": 2}),
        ("Softmax", 13, {"axis": 1}),
        ("LogSoftmax", 13, {"axis": -1}),
        ("Celu", 12, {"alpha": 0.5}),
    ],
)
def test_what_onnx2torch_has_agrees(op, version, attributes):
    assert node_error(op, version, X, **attributes) < TOLERANCE


def test_an_unknown_approximation_of_gelu_is_refused():
    with pytest.raises(BlockError, match="Gelu: approximate sigmoid"):
        to_torch(make_block("Gelu", 20, {"x": X}, approximate="sigmoid"))
