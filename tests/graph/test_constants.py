"""How many weights a model has, and how many bits each takes."""

import numpy as np
import pytest

from onnxcalib.graph.constants import bits_per_weight, constant_bytes, count_weights

HALF = """g (int64[N] i) => (float[N, 4] y) {
    [look] x = com.microsoft.GatherBlockQuantized <bits = 4, block_size = 32> (table, i, table_scale)
    [dense] h = MatMul (x, w)
    [packed] y = com.microsoft.MatMulNBits <K = 48, N = 4, bits = 4, block_size = 32> (h, m, m_scale, m_zero)
}"""


def test_packed_values_count_and_their_scales_do_not(build, draw):
    model = build(
        HALF, table=np.zeros((10, 16), np.uint8), table_scale=draw(10, 1), w=draw(32, 48),
        m=np.zeros((4, 2, 16), np.uint8), m_scale=draw(8), m_zero=draw(8),
    )  # fmt: skip
    weights = 10 * 32 + 32 * 48 + 48 * 4
    assert count_weights(model) == weights
    held = 160 + 40 + 4 * 32 * 48 + 128 + 32 + 32
    assert constant_bytes(model) == held
    assert bits_per_weight(model, count_weights(model)) == pytest.approx(8 * held / weights)


def test_constants_of_bodies_count_as_those_outside_do(build, draw):
    text = """
    g (float[N, 4] x, bool b) => (float[N, 4] y) {
      y = If (b) <
        then_branch = yes () => (float[N, 4] p) <float[2] inner = {1, 2}> { c = MatMul (x, w) p = Identity (c) },
        else_branch = no () => (float[N, 4] q) <float[3] inner = {1, 2, 3}> {
          k = Constant <value = float[4] {1, 2, 3, 4}> () q = Add (x, k)
        }
      >
    }
    """
    model = build(text, w=draw(4, 4))
    assert count_weights(model) == 16 + 2 + 3 + 4 and constant_bytes(model) == 4 * 25
