import functools

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import parser

from onnxcalib.numeric.rounding import (
    dequantize,
    fake_quantize,
    fake_quantize_dynamically,
    fake_quantize_rows,
    quantize,
)
from onnxcalib.spec import QuantSpec

BYTES, NIBBLES = QuantSpec(8), QuantSpec(4)
SCALES = st.floats(min_value=2.0**-20, max_value=2.0**10, width=32)


@functools.cache
def session():
    """QuantizeLinear to uint8, and the same clipped to 4 bits."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        "g (float[N] x, float scale, uint8 zero, uint8 low, uint8 high) => (uint8[N] y, uint8[N] z)"
        "{ y = QuantizeLinear (x, scale, zero) z = Clip (y, low, high) }"
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def run_onnxruntime(x, scale, zero_point, spec):
    feeds = {"x": x, "scale": scale, "zero": zero_point, "low": spec.qmin, "high": spec.qmax}
    types = {"x": np.float32, "scale": np.float32}
    outputs = session().run(None, {name: np.asarray(v, types.get(name, np.uint8)) for name, v in feeds.items()})
    return outputs[0 if spec.bits == 8 else 1]


def half_grid_points(scale):
    """Values between two levels, in float32, and their neighbours."""
    points = ((np.arange(-40, 300) + 0.5) * np.float64(scale)).astype(np.float32)
    return np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))])


@pytest.mark.parametrize("spec", [BYTES, NIBBLES])
@settings(max_examples=100, deadline=None)
@given(scale=SCALES, zero_point=st.integers(0, 15), values=st.lists(st.floats(-1e4, 1e4, width=32), max_size=20))
def test_rounding_is_that_of_onnxruntime_between_levels_and_anywhere(spec, scale, zero_point, values):
    x = np.concatenate([half_grid_points(scale), np.asarray(values, np.float32)])
    expected = run_onnxruntime(x, scale, zero_point, spec)
    given_ = quantize(x, np.float32(scale), np.float32(zero_point), spec)
    assert given_.dtype == np.float32
    np.testing.assert_array_equal(given_, expected)


def test_a_product_with_the_reciprocal_rounds_some_values_otherwise():
    differing = 0
    for scale in np.linspace(0.01, 0.2, 50, dtype=np.float32):
        x = half_grid_points(scale)
        by_product = (np.round(x * (np.float32(1) / scale)) + 7).clip(0, 255)
        differing += int((by_product != run_onnxruntime(x, scale, 7, BYTES)).sum())
        np.testing.assert_array_equal(quantize(x, scale, np.float32(7), BYTES), run_onnxruntime(x, scale, 7, BYTES))
    assert differing > 0


def test_numpy_and_torch_round_alike():
    scale = np.float32(0.037)
    x = half_grid_points(scale)
    by_torch = quantize(torch.from_numpy(x), torch.tensor(scale), torch.tensor(7.0), BYTES)
    np.testing.assert_array_equal(by_torch.numpy(), quantize(x, scale, np.float32(7), BYTES))


def test_signed_grids_reach_from_their_least_to_their_largest_integer():
    spec = QuantSpec(4, signed=True)
    assert quantize(np.array([-100.0, 100.0]), 1.0, 0, spec).tolist() == [-8, 7]


def test_fake_quantizing_is_quantizing_and_dequantizing():
    x = np.linspace(-3, 3, 101)
    quantized_values = fake_quantize(x, 0.1, 20, BYTES)
    np.testing.assert_array_equal(quantized_values, dequantize(quantize(x, 0.1, 20, BYTES), 0.1, 20))
    inside = x > -2.05
    assert np.abs(quantized_values - x)[inside].max() <= 0.05 + 1e-12
    assert quantized_values.min() == pytest.approx(-2.0)


@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 700.0])
def test_dynamic_rounding_is_that_of_onnxruntime(shift, scale):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] z)'
        "{ y, s, p = DynamicQuantizeLinear (x) z = DequantizeLinear (y, s, p) }"
    )
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run
    x = (np.float32(scale) * (np.random.default_rng(1).normal(size=4000) + shift)).astype(np.float32)
    for values in (x, np.abs(x), -np.abs(x), np.zeros_like(x), np.full_like(x, scale)):
        given = fake_quantize_dynamically(torch.from_numpy(values)).numpy()
        np.testing.assert_array_equal(given, run(None, {"x": values})[0])


def test_rows_are_rounded_as_onnxruntime_rounds_what_their_peaks_divide():
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        "g (float[N, K] x, float scale, uint8 zero) => (float[N, K] y) { a = Abs (x)"
        " p = ReduceMax <axes = [-1], keepdims = 1> (a) r = Div (x, p) q = QuantizeLinear (r, scale, zero)"
        " d = DequantizeLinear (q, scale, zero) y = Mul (d, p) }"
    )
    run = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 100)).astype(np.float32) * rng.lognormal(sigma=3, size=(40, 1)).astype(np.float32)
    wanted = run(None, {"x": x, "scale": np.array(1 / 127, np.float32), "zero": np.array(128, np.uint8)})[0]
    given = fake_quantize_rows(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(given, wanted)
    places = np.arange(40), np.abs(x).argmax(1)
    np.testing.assert_allclose(given[places], x[places], rtol=1e-6)  # the peak of each row is on the grid


def test_rows_of_zeros_stay():
    zeros = torch.zeros(3, 4)
    assert torch.equal(fake_quantize_rows(zeros), zeros)


def test_nothing_is_rounded_to_nothing():
    assert fake_quantize_dynamically(torch.zeros(0, 3)).shape == fake_quantize_rows(torch.zeros(0, 3)).shape == (0, 3)
