"""Whether outputs came nearer to the float model's."""

import math

import pytest

from onnxcalib.quantization.evaluate import is_nearer


@pytest.mark.parametrize(
    ("after", "before", "nearer"),
    [
        ({"y": 0.1}, {"y": 0.2}, True),
        ({"y": 0.2}, {"y": 0.2}, False),
        ({"y": 0.1, "z": 3.0}, {"y": 0.2, "z": 2.0}, True),
        ({"y": 0.1, "z": 5.0}, {"y": 0.2, "z": 2.0}, False),
        ({"y": 0.1, "z": math.inf}, {"y": 0.2, "z": math.inf}, True),
        ({"y": 0.1, "z": math.inf}, {"y": 0.2, "z": 1.0}, False),
        ({"y": 0.1, "z": 0.0}, {"y": 0.2, "z": 0.0}, True),
        ({"y": 0.1, "z": 1e-9}, {"y": 0.2, "z": 0.0}, False),
        ({"y": 0.0}, {"y": 0.2}, True),
        ({"y": 0.1}, {"y": 0.2, "z": 2.0}, True),
        ({}, {}, False),
    ],
)
def test_the_mean_gain_decides(after, before, nearer):
    assert is_nearer(after, before) == nearer
