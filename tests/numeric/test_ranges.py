from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.numeric import ranges
from onnxcalib.numeric.histogram import Histogram
from onnxcalib.numeric.ranges import FUNCTIONS, RANGE_KINDS, choose_grid, make_grid
from onnxcalib.numeric.rounding import fake_quantize
from onnxcalib.spec import QParams, QuantSpec

BYTES, NIBBLES = QuantSpec(8), QuantSpec(4)
RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=50_000).astype(np.float32)
HEAVY = RNG.standard_t(3, size=50_000).astype(np.float32)
BLOCK = np.append(np.linspace(1.0, 2.3, 5_000), [-4.0, 4.0]).astype(np.float32)


def collect(values):
    histogram = Histogram()
    histogram.add(values)
    return histogram


def measure_error(values, grid):
    quantized_values = fake_quantize(values, grid.scale, grid.zero_point.astype(np.float32), grid.spec)
    return float(np.square(quantized_values.astype(np.float64) - values).mean())


def ends(grid):
    return tuple(float(grid.scale) * (q - int(grid.zero_point)) for q in (grid.spec.qmin, grid.spec.qmax))


@pytest.mark.parametrize(("spec", "share"), [(BYTES, 1.0), (NIBBLES, 0.4)])
@pytest.mark.parametrize("values", [HEAVY, np.abs(HEAVY), HEAVY - 3, np.maximum(HEAVY, 0)])
def test_squared_error_beats_min_max_on_heavy_tails(values, spec, share):
    histogram = collect(values)
    errors = {kind: measure_error(values, choose_grid(histogram, spec, kind=kind)) for kind in RANGE_KINDS}
    assert errors["squared-error"] < share * errors["min-max"]
    assert errors["squared-error"] == min(errors.values())


def test_squared_error_is_near_the_best_range_of_all():
    chosen = measure_error(GAUSSIAN, choose_grid(collect(GAUSSIAN), NIBBLES))
    tried = [make_grid(-a, b, NIBBLES) for a in np.linspace(1, 4, 31) for b in np.linspace(1, 4, 31)]
    assert chosen <= 1.02 * min(measure_error(GAUSSIAN, grid) for grid in tried)


def test_squared_error_cuts_an_outlier_on_one_side_alone():
    outlying = np.concatenate([GAUSSIAN, np.float32([30.0])])
    low, high = ends(choose_grid(collect(outlying), NIBBLES))
    expected = ends(choose_grid(collect(GAUSSIAN), NIBBLES))
    assert low == pytest.approx(expected[0], rel=0.2) and high == pytest.approx(expected[1], rel=0.2)


def test_min_max_reaches_both_ends():
    low, high = ends(choose_grid(collect(GAUSSIAN), BYTES, kind="min-max"))
    step = (high - low) / 255
    assert low == pytest.approx(GAUSSIAN.min(), abs=step) and high == pytest.approx(GAUSSIAN.max(), abs=step)


SIGNED = QuantSpec(8, signed=True, symmetric=True)
POWERS = [replace(SIGNED, power_of_two=True), QuantSpec(8, power_of_two=True)]
WIDE = [QuantSpec(16), QuantSpec(16, signed=True, symmetric=True), QuantSpec(16, power_of_two=True)]


@pytest.mark.parametrize("values", [GAUSSIAN, HEAVY, np.abs(GAUSSIAN), HEAVY - 3])
@pytest.mark.parametrize("spec", [SIGNED, replace(SIGNED, bits=4), QuantSpec(8, symmetric=True)])
def test_a_symmetric_grid_is_near_the_best_of_all_symmetric_ones(values, spec):
    grid = choose_grid(collect(values), spec)
    assert grid.zero_point == spec.middle == (0 if spec.signed else 128)
    tried = [make_grid(-end, end, spec) for end in np.geomspace(0.5, np.abs(values).max(), 100)]
    assert measure_error(values, grid) <= 1.02 * min(measure_error(values, each) for each in tried)


@pytest.mark.parametrize("kind", RANGE_KINDS)
@pytest.mark.parametrize("spec", [SIGNED, POWERS[0]])
def test_a_symmetric_grid_of_a_bounded_tensor_keeps_its_zero_point(kind, spec):
    for bound in (6.0, np.inf):
        grid = choose_grid(collect(np.minimum(np.abs(HEAVY), bound)), spec, kind=kind, bound=bound)
        assert grid.zero_point == 0
        assert spec.power_of_two or float(grid.scale) * spec.qmax <= bound


@pytest.mark.parametrize("spec", [POWERS[0], replace(POWERS[0], bits=4)])
@pytest.mark.parametrize("values", [GAUSSIAN, HEAVY, 1.3 * HEAVY, np.abs(HEAVY), HEAVY - 3])
def test_of_all_powers_of_two_the_one_of_least_error_is_chosen(values, spec):
    grid = choose_grid(collect(values), spec)
    tried = [QParams(np.float32(2.0**p), np.int32(0), spec) for p in range(-9, 3)]
    assert grid.scale == min(tried, key=lambda each: measure_error(values, each)).scale


def test_a_power_of_two_may_have_a_free_zero_point():
    grid = choose_grid(collect(HEAVY - 3), POWERS[1])
    tried = [QParams(np.float32(2.0**p), np.int32(z), POWERS[1]) for p in range(-5, -2) for z in range(0, 256, 8)]
    assert np.log2(grid.scale) % 1 == 0
    assert measure_error(HEAVY - 3, grid) <= 1.2 * min(measure_error(HEAVY - 3, each) for each in tried)


@pytest.mark.parametrize("kind", RANGE_KINDS)
@pytest.mark.parametrize("spec", WIDE)
@pytest.mark.parametrize("values", [GAUSSIAN, np.abs(HEAVY), np.append(np.zeros(10**5, np.float32), GAUSSIAN[:9])])
def test_a_grid_of_16_bits_keeps_all_values_and_leaves_room(kind, spec, values):
    grid = choose_grid(collect(values), spec, kind=kind, percentile=100)
    low, high = ends(grid)
    room = 1.5 if kind in ("squared-error", "entropy") else 0.999
    assert low <= room * values.min() + 1e-3 and high >= room * values.max() - 1e-3
    assert measure_error(values, grid) < 1e-4**2 * np.abs(values).max() ** 2


@settings(max_examples=100, deadline=None)
@given(
    low=st.floats(-1e-4, 0),
    high=st.floats(0, 1e-4),
    bounded=st.booleans(),
    chosen=st.sampled_from([*POWERS, SIGNED, BYTES]),
)
def test_no_grid_is_narrower_than_the_least_range(low, high, bounded, chosen):
    spec = replace(chosen, least_range=1e-4)
    grid = make_grid(low, high, spec, bound=1e-5 if bounded else None)
    assert ends(grid)[1] - ends(grid)[0] >= 1e-4


def collect_rows(rows):
    histogram = collect(rows)
    histogram.add_peaks(rows)
    return histogram


def test_rows_of_few_values_leave_room_for_those_of_samples_to_come():
    rows, others = GAUSSIAN[:2400].reshape(150, 16), GAUSSIAN[2400:]
    (low, high), seen = ends(choose_grid(collect_rows(rows), BYTES)), ends(choose_grid(collect(rows), BYTES))
    assert low < 1.02 * seen[0] and high > 1.02 * seen[1]
    assert low > 1.2 * rows.min() and high < 1.2 * rows.max()
    errors = [measure_error(others, make_grid(*found, BYTES)) for found in ((low, high), seen)]
    assert errors[0] < 0.9 * errors[1]


BOUNDED_ROWS = np.clip(GAUSSIAN[:3000], -1, 1).reshape(150, 20)


@pytest.mark.parametrize("rows", [GAUSSIAN[:48000].reshape(12, 4000), BOUNDED_ROWS, GAUSSIAN[:70].reshape(7, 10)])
def test_samples_of_many_values_bounded_values_and_few_samples_leave_none(rows):
    found, seen = ends(choose_grid(collect_rows(rows), BYTES)), ends(choose_grid(collect(rows), BYTES))
    assert found == pytest.approx(seen, rel=0.06)


@pytest.mark.parametrize("percentile", [99.99, 99.0, 90.0])
def test_a_percentile_leaves_out_its_share_of_the_values(percentile):
    grid = choose_grid(collect(HEAVY), BYTES, kind="percentile", percentile=percentile)
    low, high = ends(grid)
    outside = np.mean((HEAVY < low - grid.scale) | (HEAVY > high + grid.scale))
    inside = np.mean((HEAVY > low + grid.scale) & (HEAVY < high - grid.scale))
    assert 100 * (1 - outside) >= percentile - 0.01
    assert 100 * inside <= percentile + 0.05


def test_a_percentile_of_values_of_one_sign_cuts_their_far_end_alone():
    values = np.linspace(0, 1, 10_001, dtype=np.float32)
    low, high = ends(choose_grid(collect(values), BYTES, kind="percentile", percentile=90.0))
    assert low == 0 and high == pytest.approx(0.9, abs=0.001)


def test_a_percentile_of_hundred_is_min_max():
    histogram = collect(HEAVY)
    by_percentile = choose_grid(histogram, BYTES, kind="percentile", percentile=100.0)
    assert ends(by_percentile) == pytest.approx(ends(choose_grid(histogram, BYTES, kind="min-max")))


def test_entropy_clips_far_outliers_and_keeps_what_has_none():
    flat = np.linspace(-1, 1, 100_001, dtype=np.float32)
    assert ends(choose_grid(collect(flat), BYTES, kind="entropy")) == pytest.approx((-1, 1), abs=0.03)
    outlying = np.concatenate([GAUSSIAN, np.float32([1000.0])])
    low, high = ends(choose_grid(collect(outlying), NIBBLES, kind="entropy"))
    assert high < 100 and low < -0.5


@settings(max_examples=200, deadline=None)
@given(
    high=st.floats(2.0**-10, 1e6, width=32),
    bound=st.floats(2.0**-10, 1e4, width=32),
    bits=st.sampled_from([8, 4]),
)
def test_a_bounded_grid_starts_at_zero_and_ends_inside_its_bound(high, bound, bits):
    grid = make_grid(-1.0, high, QuantSpec(bits), bound=bound)
    assert grid.zero_point == 0 and grid.scale.dtype == np.float32
    assert np.float32(grid.spec.qmax) * grid.scale <= np.float32(bound)
    assert float(grid.scale) * grid.spec.qmax == pytest.approx(min(high, bound), rel=1e-5)


@pytest.mark.parametrize("kind", RANGE_KINDS)
def test_every_kind_respects_a_bound_even_where_the_data_reach_below_zero(kind):
    grid = choose_grid(collect(HEAVY), NIBBLES, kind=kind, bound=float("inf"))
    assert grid.zero_point == 0
    assert ends(choose_grid(collect(HEAVY), NIBBLES, kind=kind, bound=0.5))[1] <= 0.5


def test_squared_error_with_a_bound_is_measured_on_the_bounded_grid():
    values = np.concatenate([np.full(2000, -50.0), np.abs(GAUSSIAN)]).astype(np.float32)
    grid = choose_grid(collect(values), NIBBLES, bound=float("inf"))
    positive = choose_grid(collect(np.abs(GAUSSIAN)), NIBBLES, bound=float("inf"))
    assert float(grid.scale) == pytest.approx(float(positive.scale), rel=0.1)


@pytest.mark.parametrize("bound", [None, float("inf"), 1.5])
@pytest.mark.parametrize(
    "spec", [BYTES, NIBBLES, replace(BYTES, signed=True, symmetric=True), replace(NIBBLES, least_range=2.3)]
)
@pytest.mark.parametrize("values", [GAUSSIAN, HEAVY, np.maximum(HEAVY - 1, 0), HEAVY * np.float32(1e-30), BLOCK])
def test_ranges_that_are_not_looked_at_are_none_that_would_be_chosen(values, spec, bound, monkeypatch):
    found = choose_grid(collect(values), spec, bound=bound)
    monkeypatch.setattr(ranges, "AT_ONCE", 10**6)
    whole = choose_grid(collect(values), spec, bound=bound)
    assert (found.scale, found.zero_point) == (whole.scale, whole.zero_point)


@settings(max_examples=200, deadline=None)
@given(low=st.floats(-1e4, 1e4, width=32), high=st.floats(-1e4, 1e4, width=32), bits=st.sampled_from([8, 4]))
def test_zero_is_on_every_grid(low, high, bits):
    spec = QuantSpec(bits)
    grid = make_grid(min(low, high), max(low, high), spec)
    assert spec.qmin <= grid.zero_point <= spec.qmax and grid.scale > 0
    assert grid.zero_point.dtype == np.int32 and grid.scale.dtype == np.float32
    assert fake_quantize(np.float32(0), grid.scale, grid.zero_point.astype(np.float32), spec) == 0


@pytest.mark.parametrize("kind", RANGE_KINDS)
@pytest.mark.parametrize("value", [0.0, 3.0, -0.25])
def test_a_constant_tensor_is_on_its_grid(kind, value):
    values = np.full(100, value, np.float32)
    grid = choose_grid(collect(values), BYTES, kind=kind)
    assert np.isfinite(grid.scale) and grid.scale > 0
    assert measure_error(values, grid) <= (0.01 * value) ** 2


@pytest.mark.parametrize("kind", RANGE_KINDS)
def test_a_tensor_without_values_has_a_grid(kind):
    grid = choose_grid(Histogram(), BYTES, kind=kind)
    assert np.isfinite(grid.scale) and grid.scale > 0


@pytest.mark.parametrize("kind", RANGE_KINDS)
@pytest.mark.parametrize("size", [1e-9, 1e-20, 1e-33])
def test_small_values_get_a_grid_of_their_own_size(kind, size):
    values = (GAUSSIAN * np.float32(size)).astype(np.float32)
    grid = choose_grid(collect(values), BYTES, kind=kind)
    assert measure_error(values.astype(np.float64) / size, rescale(grid, 1 / size)) < 1e-2


def rescale(grid, factor):
    return QParams(np.asarray(float(grid.scale) * factor), grid.zero_point, grid.spec)


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name])
def test_levels_are_spent_where_the_function_is_not_flat(function):
    values = np.random.default_rng(0).normal(-20, 12, 40_000)
    histogram, behind = collect(values), FUNCTIONS[function]
    plain, own = choose_grid(histogram, BYTES), choose_grid(histogram, BYTES, function=function)

    def error(grid):
        rounded = fake_quantize(values, float(grid.scale), int(grid.zero_point), BYTES)
        return np.square(behind(rounded) - behind(values)).mean()

    assert ends(own)[0] > 0.5 * ends(plain)[0]
    assert error(own) < 0.5 * error(plain)
