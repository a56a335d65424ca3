import numpy as np
import pytest

from onnxcalib.numeric.levels import Levels, find_levels, shared_grid, stretch
from onnxcalib.numeric.rounding import fake_quantize
from onnxcalib.spec import QuantSpec

SPEC = QuantSpec(8)
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


def pixels(mean=MEAN, std=STD, *, low=0, high=255, size=4000, seed=0):
    """Normalized values (3, size) of which all pixels from low to high occur, each channel's ends among them."""
    drawn = np.random.default_rng(seed).integers(low, high + 1, (3, size))
    drawn[:, :2] = low, high
    return ((drawn.astype(np.float32) / np.float32(255) - mean[:, None]) / std[:, None]).astype(np.float32), drawn


def test_the_pitch_and_the_ends_of_normalized_pixels_are_found():
    values, _ = pixels()
    found = find_levels(values, 256)
    np.testing.assert_allclose(found.pitch, 1 / (255 * STD.astype(float)), rtol=1e-5)
    np.testing.assert_allclose(found.origin, -MEAN / STD, rtol=1e-5)
    assert found.highest.tolist() == [255, 255, 255]


def test_gaps_between_levels_do_no_harm():
    values = np.float32([[0, 1, 3, 7, 20]]) * np.float32(0.1) + np.float32(5)
    found = find_levels(values, 256)
    assert found.highest.tolist() == [20] and found.pitch == pytest.approx([0.1], rel=1e-4)


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=(3, 1000)),
        np.random.default_rng(0).normal(size=(3, 50)),
        np.arange(257.0)[None],
        np.float32([[0, 2, 5]]),
        np.ones((2, 9)),
        np.concatenate([np.zeros(50), np.random.default_rng(0).uniform(0.5, 1, 100_000)])[None],
        np.float32([[0, 1, np.nan]]),
        np.float32([[0, 1, np.inf]]),
        np.zeros((3, 0)),
        np.zeros((0, 3)),
    ],
    ids=["many", "few", "257", "uneven", "constant", "a continuum beside a gap", "nan", "inf", "empty", "no channel"],
)
def test_values_that_are_on_no_even_levels_have_none(values):
    assert find_levels(values.astype(np.float32), 256) is None


def test_later_values_widen_the_levels_at_both_ends():
    some, _ = pixels(low=40, high=200)
    found = find_levels(some, 256)
    wider = found.extend(pixels(seed=1)[0])
    assert wider.highest.tolist() == [255] * 3
    np.testing.assert_allclose(wider.origin, -MEAN / STD, rtol=1e-4)
    inside = wider.extend(some)
    np.testing.assert_array_equal(inside.highest, wider.highest)
    np.testing.assert_array_equal(inside.origin, wider.origin)


@pytest.mark.parametrize("wrong", [0.5, 0.02, np.nan, np.inf])
def test_a_later_value_between_two_levels_ends_it(wrong):
    values, _ = pixels()
    found = find_levels(values, 256)
    values[1, 7] += wrong * found.pitch[1]
    assert found.extend(values) is None


def test_channels_of_one_pitch_share_a_grid_that_makes_no_error():
    values = (np.arange(256, dtype=np.float32) / np.float32(255))[None].repeat(3, 0)
    grid = shared_grid(find_levels(values, 256), SPEC)
    assert int(grid.zero_point) == 0
    assert np.abs(fake_quantize(values, float(grid.scale), 0, SPEC) - values).max() < 1e-6


def test_what_a_grid_has_left_lies_on_both_sides_of_the_levels_or_above_zero():
    values = (np.arange(3, 252, dtype=np.float32) / np.float32(255))[None]
    grid = shared_grid(find_levels(values, 256), SPEC)
    assert grid.scale == pytest.approx(1 / 255, rel=1e-5) and int(grid.zero_point) == 0
    found = Levels(np.array([-1.0]), np.array([0.01]), np.array([200]))
    grid = shared_grid(found, SPEC)
    assert int(grid.zero_point) == 127  # the levels stand on 27 to 227


def test_few_levels_stand_a_whole_number_of_steps_apart():
    values = (np.arange(17, dtype=np.float32) / np.float32(16))[None]
    grid = shared_grid(find_levels(values, 256), SPEC)
    assert grid.scale == pytest.approx(1 / 16 / 15, rel=1e-5)
    quantized_values = fake_quantize(values, float(grid.scale), float(grid.zero_point), SPEC)
    assert np.abs(quantized_values - values).max() < 1e-6


@pytest.mark.parametrize(
    ("origin", "pitch", "highest"),
    [
        ([0, 0], [1.0, 1.001], [255, 255]),
        ([0, -20], [1.0, 1.0], [255, 255]),
        ([0, 0.5], [1.0, 1.0], [200, 200]),
        ([200], [1.0], [100]),
        ([-300], [1.0], [100]),
    ],
    ids=["pitches drift apart", "the range is too wide", "halves would be ties", "zero lies below", "zero lies above"],
)
def test_there_is_no_shared_grid_where(origin, pitch, highest):
    assert shared_grid(Levels(np.array(origin, float), np.array(pitch), np.array(highest)), SPEC) is None


@pytest.mark.parametrize("value", [4, 0, -7, 3e-8, 1e-40])
def test_a_channel_of_one_value_has_the_pitch_of_the_others(value):
    values = np.float32([[0, 0.5, 1], [value] * 3])
    found = find_levels(values, 256)
    assert found.highest.tolist() == [2, 0] and found.pitch.tolist() == pytest.approx([0.5, 0.5])
    assert find_levels(values[1:], 256) is None
    factor, _, _ = stretch(found, SPEC)
    assert factor[0] == factor[1]


def test_levels_too_close_together_for_float32_are_none():
    assert find_levels(np.float32([[0, 1e-38, 2e-38]]), 256) is None


def test_values_beyond_all_counting_are_on_no_level():
    assert find_levels(np.float32([[0, 1, 2]]), 256).extend(np.float32([[1e30]])) is None


def test_many_values_are_looked_at_in_parts(monkeypatch):
    monkeypatch.setattr("onnxcalib.numeric.levels.CHUNK", 100)
    values, _ = pixels()
    assert find_levels(values, 256).highest.tolist() == [255] * 3
    values[2, -1] += np.float32(0.005)
    assert find_levels(values, 256) is None


def test_stretching_puts_every_pixel_on_its_own_step():
    values, drawn = pixels()
    factor, shift, grid = stretch(find_levels(values, 256), SPEC)
    stretched = factor[:, None] * values + shift[:, None]
    np.testing.assert_allclose(stretched + float(grid.zero_point), drawn, atol=0.01)
    assert float(grid.scale) == 1 and np.abs(shift).max() < 15  # of 104, 116 and 124 levels


@pytest.mark.parametrize(("low", "high"), [(0, 60), (200, 255), (90, 140)])
def test_zero_is_on_the_grid_wherever_the_levels_lie(low, high):
    _, shift, grid = stretch(find_levels(pixels(low=low, high=high)[0], 256), SPEC)
    zero = shift + float(grid.zero_point)
    assert zero.min() >= 0 and zero.max() <= 255


@pytest.mark.parametrize(("low", "high"), [(215, 255), (0, 40), (100, 130)])
def test_a_channel_that_reaches_less_far_than_others_may_do_so_later(low, high):
    """All channels of one mean and deviation, so that each fits on the grid of all."""
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    values, _ = pixels(mean, std)
    some, _ = pixels(mean, std, low=low, high=high)
    values[0] = some[0]
    factor, shift, grid = stretch(find_levels(values, 256), SPEC)
    later = factor[:, None] * pixels(mean, std, seed=1)[0] + shift[:, None]
    steps = later / float(grid.scale) + float(grid.zero_point)
    assert steps.min() >= -0.5 and steps.max() <= 255.5


def test_dark_images_leave_room_for_brighter_ones():
    factor, _, _ = stretch(find_levels(pixels(high=60)[0], 256), SPEC)
    np.testing.assert_allclose(factor, 255 * STD, rtol=1e-4)  # one step a pixel


def test_a_channel_of_few_levels_has_the_unit_of_the_others():
    found = Levels(np.array([-2.0, 0.0]), np.array([1 / 64, 1.0]), np.array([255, 1]))
    factor, _, grid = stretch(found, SPEC)
    np.testing.assert_allclose(factor / float(grid.scale), [64, 64])


def test_channels_of_one_mean_and_deviation_need_a_shift_alone():
    """That of pixels whose mean lies between two levels; zero then is read as the zero point."""
    values, drawn = pixels(np.full(3, 0.5, np.float32), np.full(3, 0.5, np.float32))
    factor, shift, grid = stretch(find_levels(values, 256), SPEC)
    assert factor.tolist() == [1, 1, 1] and float(grid.scale) == pytest.approx(1 / 127.5)
    places = (values + shift[:, None]) / float(grid.scale) + float(grid.zero_point)
    np.testing.assert_allclose(places, drawn, atol=0.01)
    assert 0 < np.abs(shift).max() < 0.5 * float(grid.scale) and len(set(shift)) == 1


def test_a_symmetric_grid_of_powers_of_two_holds_pixels_on_its_steps():
    values, drawn = pixels()
    spec = QuantSpec(8, signed=True, symmetric=True, power_of_two=True)
    factor, shift, grid = stretch(find_levels(values, 256), spec)
    assert (grid.scale, grid.zero_point) == (1, 0)
    np.testing.assert_allclose(factor[:, None] * values + shift[:, None], drawn - 128.0, atol=0.01)
    assert shared_grid(find_levels(values, 256), spec) is None


def test_stretching_refuses_more_levels_than_the_grid_has():
    assert stretch(Levels(np.zeros(2), np.ones(2), np.array([255, 256])), SPEC) is None
    assert stretch(Levels(np.array([300.0]), np.ones(1), np.array([9])), SPEC) is None
