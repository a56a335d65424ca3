"""Tensors that an activation function alone reads."""

import numpy as np
import pytest

from onnxcalib.graph.index import Index
from onnxcalib.graph.squashed import find_squashed


@pytest.fixture
def find(build, weigh):
    def run(body, outputs="float[N, 4, 8, 8] y", **more):
        model = build(
            f"g (float[N, 3, 8, 8] x) => ({outputs}) {{ [c] c = Conv (x, w) {body} }}", w=weigh(4, 3, 1, 1), **more
        )
        return find_squashed(Index(model.graph))

    return run


@pytest.mark.parametrize(
    ("body", "function"),
    [
        ("[y] y = Sigmoid (c)", "sigmoid"),
        ("[y] y = Tanh (c)", "tanh"),
        ("[y] y = HardSwish (c)", "hard-swish"),
        ("[s] s = Sigmoid (c)  [y] y = Mul (c, s)", "swish"),
        ("[s] s = Sigmoid (c)  [y] y = Mul (s, c)", "swish"),
        ("[s] s = HardSigmoid <alpha = 0.16666667, beta = 0.5> (c)  [y] y = Mul (c, s)", "hard-swish"),
    ],
)
def test_the_function_is_found(find, body, function):
    assert find(body)["c"] == function


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("[s] s = Sigmoid (c)  [y] y = Add (c, s)", {}),
        ("[s] s = HardSigmoid (c)  [y] y = Mul (c, s)", {}),
        ("[s] s = Sigmoid (c)  [t] t = Mul (c, s)  [y] y = Add (t, s)", {}),
        ("[s] s = Sigmoid (c)  [t] t = Mul (c, s)  [y] y = Add (t, c)", {}),
        ("[y] y = Mul (c, two)", {"two": np.float32(2)}),
    ],
)
def test_a_tensor_that_is_read_otherwise_keeps_its_range(find, body, more):
    assert "c" not in find(body, **more)


def test_an_output_of_the_graph_is_read_by_its_users(find):
    assert "c" not in find("[y] y = Sigmoid (c)", "float[N, 4, 8, 8] y, float[N, 4, 8, 8] c")
