import numpy as np
import pytest

from onnxcalib.numeric.bin_sums import BinSums
from onnxcalib.numeric.histogram import Histogram
from onnxcalib.numeric.ranges import FUNCTIONS
from onnxcalib.numeric.rounding import fake_quantize
from onnxcalib.spec import QuantSpec


@pytest.mark.parametrize("spec", [QuantSpec(8), QuantSpec(4, signed=True), QuantSpec(8, power_of_two=True)])
@pytest.mark.parametrize("function", [None, "swish"])
def test_the_errors_of_many_grids_are_those_of_each_bin_rounded(spec, function):
    draw = np.random.default_rng(0)
    histogram, apply = Histogram(), FUNCTIONS.get(function, lambda x: x)
    histogram.add(draw.laplace(size=20_000))
    scales = (2.0 ** draw.integers(-9, 1, 200)).astype(np.float64)
    scales *= 1 if spec.power_of_two else draw.uniform(0.5, 1, 200)
    zero_points = draw.integers(spec.qmin, spec.qmax + 1, 200)
    sums = BinSums(histogram, FUNCTIONS.get(function))
    found = sums.measure(scales, zero_points, spec)
    centres = histogram.centres
    for scale, zero_point, error in zip(scales, zero_points, found, strict=True):
        rounded = fake_quantize(centres, float(scale), int(zero_point), spec)
        expected = np.dot(histogram.counts, np.square(apply(rounded) - apply(centres)))
        assert abs(error - expected) <= sums.slack
    assert sums.slack < 1e-4 * found.min()  # far below what two grids differ by
