"""What is computed from positions alone is told from data, tables and masks."""

import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.positions import FROM_POSITIONS, WITH_POSITIONS, find_positional

WHOLE = "[cast] p = Cast <to = 1> (pos) "
CONSTANTS = {
    "row": np.float32([[[1, 0.1]]]), "column": np.ones((4, 1), np.float32), "table": np.ones((9, 2), np.float32),
    "square": np.ones((2, 2), np.float32), "places": np.int64([1, 0]), "two": np.float32(2), "axis": np.int64([2]),
    "frequencies": np.float32([[1], [0.1]]), "long": np.int64([1, 1]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "found"),
    [
        # angles: positions times frequencies, as a product of computed values, as an outer product, with a range
        ("[u] u = Unsqueeze (p, axis) [f] f = Expand (row, long) [m] y = MatMul (u, f)", {"m": FROM_POSITIONS}),
        ("[u] u = Unsqueeze (p, axis) [m] y = MatMul (u, row)", {"m": FROM_POSITIONS}),
        ("[u] u = Transpose (p) [m] y = Gemm <transB = 1> (u, column)", {"m": FROM_POSITIONS}),
        ("[n] n = Size (x) [c] c = Cast <to = 1> (n) [a] y = Add (c, c)", {"a": FROM_POSITIONS}),
        # what is turned by them: an operand of data
        ("[s] s = Sin (p) [m] y = Mul (x, s)", {"m": WITH_POSITIONS}),
        ("[s] s = Sin (p) [m] y = Mul (s, x) [a] z = Add (y, y)", {"m": WITH_POSITIONS}),
        ("[s] s = Sin (p) [m] y = MatMul (x, s)", {"m": WITH_POSITIONS}),
        # what joins both shares a grid with data anyway
        ("[s] s = Sin (p) [c] y = Concat <axis = 0> (x, s)", {}),
        # rows of a table, what a layer makes, noise, masks, constants
        ("[g] g = Gather (table, pos) [m] y = Mul (g, g)", {}),
        ("[u] u = Transpose (p) [l] l = MatMul (p, square) [m] y = Mul (l, l)", {}),
        ("[r] r = RandomNormalLike (p) [m] y = Mul (x, r)", {}),
        ("[g] g = Greater (p, two) [c] c = Cast <to = 1> (g) [m] y = Mul (x, c)", {}),
        ("[m] y = Mul (x, two)", {}),
        ("[m] y = Mul (x, x)", {}),
    ],
)
def test_operators_that_compute_with_positions(build, body, found):
    used = {name: value for name, value in CONSTANTS.items() if name in body}
    model = build(f"g (float[2, 2] x, int64[2, 2] pos) => (float[a] y) {{ {WHOLE} {body} }}", **used)
    assert find_positional(model, Index(model.graph)) == found


def test_an_image_of_bytes_is_data(build):
    body = "a = Cast <to = 1> (x) b = Cast <to = 1> (z) [m] y = Mul (a, b)"
    model = build(f"g (uint8[2, 2] x, uint8[2, 2] z) => (float[2, 2] y) {{ {body} }}")
    assert find_positional(model, Index(model.graph)) == {}
