"""Models are timed as their users run them."""

import numpy as np

from onnxcalib.runtime.turns import open_as_users


def test_a_timed_model_draws_as_its_users_do(build):
    session = open_as_users(build("g (float[N, 64] x) => (float[N, 64] y) { y = RandomNormalLike (x) }"))
    first, second = (session.run({"x": np.zeros((1, 64), np.float32)})["y"] for _ in range(2))
    assert (first != second).any()
