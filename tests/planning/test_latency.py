"""Kernels of the optimized graph and the layers that they belong to."""

import numpy as np
import pytest

from onnxcalib.graph.load import load_model
from onnxcalib.planning.latency import _find_owner, _sum_by_layer, profile
from onnxcalib.spec import LayerScheme, QuantSpec

LAYERS = ["/a/Conv", "/a/Conv_1", "head"]


@pytest.mark.parametrize(
    ("kernel", "owner"),
    [
        ("/a/Conv", "/a/Conv"),
        ("/a/Conv_token_12", "/a/Conv"),
        ("/a/Conv_1_token_4", "/a/Conv_1"),
        ("/a/Conv_12", "/a/Conv"),
        ("header", None),
        ("Transpose", None),
    ],
)
def test_a_kernel_is_its_layers_by_the_longest_name(kernel, owner):
    assert _find_owner(kernel, LAYERS) == owner


def test_a_layer_takes_the_time_of_its_kernels_and_of_those_that_quantize_its_input():
    layers = [
        LayerScheme(name, "MatMul", tensor, "w", None, "y", QuantSpec(8), QuantSpec(8))
        for name, tensor in (("first", "x"), ("second", "h"))
    ]
    kernels = {"first": 1.0, "first_nchwc": 2.0, "h_QuantizeLinear": 4.0, "Softmax": 8.0}
    assert _sum_by_layer(kernels, layers) == {"first": 3.0, "second": 4.0}


def test_kernels_are_timed_by_name(build, weigh, draw):
    model = load_model(
        build("g (float[N, 8] x) => (float[N, 4] y) { [fc] y = Gemm (x, w, b) }", w=weigh(8, 4), b=weigh(4))
    )
    times = profile(model, [{"x": draw(2, 8)}], threads=1)
    assert list(times) == ["fc"] and 0 <= times["fc"] < 1e3 and np.isfinite(times["fc"])
