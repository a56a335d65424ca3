import numpy as np
import pytest

from onnxcalib.numeric.fill import find_fill

SCORES = np.float32([[1, -2, 3], [0, 5, -4]])
MASK = np.array([[False, True, False], [False, False, True]])


@pytest.mark.parametrize("fill", [-1e9, np.finfo(np.float32).min, -65504])
def test_masked_scores_are_found_where_both_models_have_the_same_constant(fill):
    one, other = (np.where(MASK, np.float32(fill), scores) for scores in (SCORES, SCORES * 1.01))
    np.testing.assert_array_equal(find_fill(one, other), MASK)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (SCORES, SCORES * 1.01),
        (np.where(MASK, np.float32(-1e9), SCORES), SCORES),
        (np.full((2, 3), -1e9, np.float32), np.full((2, 3), -1e9, np.float32)),
        (np.where(MASK, -np.inf, SCORES), np.where(MASK, -np.inf, SCORES)),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
        (np.float16(100 * SCORES), np.float16(100 * SCORES)),
        (np.float32(1e37) * SCORES, np.float32(1e37) * SCORES),
    ],
    ids=["none", "one model only", "nothing else", "infinite", "empty", "large halves", "large floats"],
)
def test_other_tensors_have_none(one, other):
    assert find_fill(one, other) is None
