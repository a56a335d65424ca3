"""Which roots of sums of squares are magnitudes, and which are norms that divide."""

import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.magnitudes import is_magnitude


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s = Mul (x, x)  t = Pow (x, two)  u = Add (s, t)  y = Sqrt (u)", True),
        ("s = Pow (x, two)  t = ReduceSum (s, last)  u = Add (t, tiny)  y = Sqrt (u)", True),
        ("s = ReduceSumSquare (x)  y = Sqrt (s)", True),
        ("y = ReduceL2 (x)", True),
        ("y = Sqrt (x)", False),
        ("s = Mul (x, x)  t = Abs (x)  u = Add (s, t)  y = Sqrt (u)", False),
        ("s = Pow (x, three)  y = Sqrt (s)", False),
        ("s = Mul (x, x)  t = ReduceSum (s, last)  v = Sqrt (t)  w = Add (v, tiny)  y = Div (x, w)", False),
        ("v = ReduceL2 (x)  w = Clip (v, tiny)  z = Expand (w, last)  y = Div (x, z)", False),
        ("s = Mul (x, x)  v = Sqrt (s)  y = Reciprocal (v)", False),
    ],
)
def test_a_magnitude_is_the_root_of_a_sum_of_squares_that_divides_nothing(build, text, found):
    constants = {"two": np.float32(2), "three": np.float32(3), "tiny": np.float32(1e-6), "last": np.array([1])}
    used = {name: value for name, value in constants.items() if f"{name})" in text}
    model = build(f"g (float[4, 3] x) => (float y) {{ {text} }}", **used)
    index = Index(model.graph)
    assert any(is_magnitude(index, node) for node in model.graph.node) == found
