"""Whether outputs came nearer to the float model's."""

import numpy as np
import pytest

from onnxcalib.report import OutputRecord
from onnxcalib.steps.appraise import is_nearer


def record(name, sqnr, agreement=None):
    return OutputRecord(name, sqnr, None, None, agreement)


@pytest.mark.parametrize(
    ("after", "before", "nearer"),
    [
        ([record("y", 21.0)], [record("y", 20.0)], True),
        ([record("y", 20.0)], [record("y", 20.0)], False),
        ([record("y", 30.0), record("z", 15.0)], [record("y", 20.0), record("z", 20.0)], True),
        ([record("y", 30.0), record("z", np.nan)], [record("y", 20.0), record("z", np.nan)], True),
        ([record("y", 30.0), record("z", 60.0)], [record("y", 20.0), record("z", np.inf)], True),
        ([record("y", 30.0)], [record("y", 20.0), record("z", 50.0)], True),
        ([record("top", None, 0.8)], [record("top", None, 0.7)], True),
        ([record("y", 19.0), record("top", None, 0.8)], [record("y", 20.0), record("top", None, 0.7)], False),
        ([], [], False),
    ],
)
def test_the_mean_gain_decides(after, before, nearer):
    assert is_nearer(after, before) == nearer
