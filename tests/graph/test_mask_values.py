import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.mask_values import find_mask_values, find_masked_scores, reaches_softmax

TEXT = """g (float[1, 2, 4, 4] x, int64[1, 4] mask) => (float[1, 2, 4, 4] y, float[1, 1] n, float[1, 2, 4, 4] z) <
    float one = {1.0}, float far = {-1000.0}, int64[4] row = {1, 1, 1, 4}, int64[1] last = {1}
> {
    f = Cast <to = 1> (mask)  h = Sub (one, f)  m = Mul (h, far)  r = Reshape (m, row)
    n = ReduceSum (f, last)  s = MatMul (x, x)  a = Add (s, r)  z = Add (x, r)  i = Identity (a)  y = Softmax (i)
}"""


@pytest.fixture
def index(build):
    return Index(build(TEXT).graph)


def test_what_is_computed_of_a_mask_token_by_token_is_found(index):
    assert find_mask_values(index, ["mask"]) == ["f", "h", "m", "r"]
    assert find_mask_values(index, ["other"]) == []


def test_scores_are_what_a_softmax_reads(index):
    assert find_masked_scores(index, ["f", "h", "m", "r"]) == ["a"]
    assert [reaches_softmax(index, index.producer[name]) for name in ("a", "z", "n")] == [True, False, False]
