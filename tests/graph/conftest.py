"""A model that both planning and writing are tested on, and a measure of how work grows."""

import sys

import numpy as np
import pytest

ATTENTION = """g (float[N, S, 16] x, float[N, 1, S] mask) => (float[N, S, 16] y) {
    [norm] h = LayerNormalization (x, gain)
    [query] q0 = MatMul (h, wq)  [query_add] q = Add (q0, bq)
    [key] k = MatMul (h, wk)  [value] v = MatMul (h, wv)
    [turn] kt = Transpose <perm = [0, 2, 1]> (k)
    [scores] s = MatMul (q, kt)  [masked] m = Add (s, mask)  [soft] p = Softmax (m)
    [mix] o = MatMul (p, v)
    [dense] d0 = MatMul (o, wd)  [dense_add] d = Add (bd, d0)
    [join] y = Add (d, h)
}"""


@pytest.fixture
def attention(build, draw):
    weights = {name: draw(16, 16) / np.float32(8) for name in ("wq", "wk", "wv", "wd")}
    return build(ATTENTION, gain=np.ones(16, np.float32), bq=draw(16), bd=draw(16), **weights)


@pytest.fixture
def count_lines():
    """Counts the lines of the package that a call executes: how its work grows, whatever else the machine does."""

    def count(call):
        lines = 0

        def trace(frame, event, _):
            nonlocal lines
            if "onnxcalib" not in frame.f_code.co_filename:
                return None
            lines += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call()
        finally:
            sys.settrace(before)
        return lines

    return count
