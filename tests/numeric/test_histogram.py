import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.numeric.histogram import BINS, Histogram

# Of all magnitudes that float32 can divide by any bin width without falling below its smallest number.
FLOATS = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda v: v if abs(v) > 2.0**-60 else 0.0)
BATCHES = st.lists(st.lists(FLOATS, max_size=30), max_size=6)


def collect(batches):
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch, np.float32))
    return histogram


def content(histogram):
    """(left edge, width) -> count, of the bins that hold something."""
    used = np.flatnonzero(histogram.counts)
    return {int(i) + histogram.first: int(histogram.counts[i]) for i in used}


def coarsen(histogram, width):
    """Content as if the bins were ``width`` wide."""
    merged = {}
    for place, count in content(histogram).items():
        wide = place // round(width / histogram.width)
        merged[wide] = merged.get(wide, 0) + count
    return merged


@settings(max_examples=300, deadline=None)
@given(batches=BATCHES)
def test_growth_keeps_every_count_and_the_exact_ends(batches):
    histogram = collect(batches)
    values = [v for batch in batches for v in batch]
    assert histogram.counts.sum() == len(values)
    if values:
        assert (histogram.minimum, histogram.maximum) == (min(values), max(values))
        places = np.floor(np.asarray(values, np.float32).astype(np.float64) / histogram.width)
        expected = dict(zip(*np.unique(places, return_counts=True), strict=True))
        assert content(histogram) == expected


@settings(max_examples=300, deadline=None)
@given(one=BATCHES, two=BATCHES)
def test_merging_is_the_same_as_adding_everything_to_one(one, two):
    merged, whole = collect(one), collect(one + two)
    other = collect(two)
    before = content(other)
    merged.merge(other)
    assert (merged.minimum, merged.maximum) == (whole.minimum, whole.maximum)
    width = max(merged.width, whole.width)
    if width:
        assert coarsen(merged, width) == coarsen(whole, width)
    assert content(other) == before


def test_a_coarser_histogram_merges_into_a_finer_one_whose_window_holds_it():
    fine = collect([[1.0], [8191 / 8190]])
    coarse = Histogram()
    coarse.add(np.array([1.0], np.float32))
    coarse.width *= 4
    coarse.first, coarse.counts = 0, np.bincount([int(1.0 / coarse.width)], minlength=BINS)
    fine.merge(coarse)
    assert fine.counts.sum() == 3 and fine.width == coarse.width


def test_memory_does_not_grow_with_the_samples():
    histogram = collect(np.random.default_rng(0).normal(size=(50, 1000)) * np.arange(1, 51)[:, None])
    assert histogram.counts.shape == (BINS,) and histogram.counts.sum() == 50_000 and not histogram.peaks.size
    assert sorted(vars(histogram)) == ["counts", "first", "maximum", "minimum", "peaks", "width"]


def test_bins_stay_fine_however_the_data_come():
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32)
    histogram = collect(np.array_split(values, 37))
    span = max(values.max(), 0) - min(values.min(), 0)
    assert span / histogram.width > BINS / 4
    mean = np.average(histogram.centres, weights=histogram.counts)
    assert mean == pytest.approx(values.mean(), abs=histogram.width)


def test_an_array_larger_than_a_chunk_is_counted_whole():
    assert collect([np.ones((3, 100_000))]).counts.sum() == 300_000


def test_zero_is_always_a_bin_edge():
    histogram = collect([[-0.3, 1.7], [-5.0]])
    assert histogram.first * histogram.width <= -5.0
    below = histogram.counts[: -histogram.first].sum()
    assert below == 2


def test_an_empty_array_changes_nothing():
    histogram = collect([np.zeros((0, 3))])
    assert histogram.width == 0 and histogram.minimum == np.inf


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="values that are not finite"):
        collect([[0.0, bad, 1.0]])


def test_peaks_are_those_of_each_sample_or_zero_and_of_several_tensors_the_furthest():
    one, other = Histogram(), Histogram()
    for histogram, rows in ((one, [[1, 2], [-3, -1]]), (other, [[-4, 1], [5, 0]])):
        values = np.asarray(rows, np.float32)
        histogram.add(values)
        histogram.add_peaks(values)
    np.testing.assert_array_equal(one.peaks, [[0, -3], [2, 0]])
    merged = Histogram()
    for histogram in (one, other):
        merged.merge(histogram)
    np.testing.assert_array_equal(merged.peaks, [[-4, -3], [2, 5]])


def test_one_of_so_many_values_is_counted_as_that_many_and_the_ends_are_those_of_all():
    draw = np.random.default_rng(0)
    whole, some = Histogram(), Histogram()
    for _ in range(5):
        rows = draw.integers(-3, 4, (2, 7000)).astype(np.float32) + np.float32(0.25)
        whole.add_rows(rows)
        some.add_rows(rows, step=5)
    assert (some.minimum, some.maximum, some.width) == (whole.minimum, whole.maximum, whole.width)
    assert np.array_equal(some.peaks, whole.peaks)
    assert some.counts.sum() == whole.counts.sum()
    assert set(content(some)) == set(content(whole))
    assert all(abs(count / content(whole)[place] - 1) < 0.1 for place, count in content(some).items())


def test_each_batch_shows_other_values_where_not_all_are_counted():
    histogram = Histogram()
    rows = np.arange(1.0, 13.0, dtype=np.float32).reshape(1, 12)
    for _ in range(3):
        histogram.add_rows(rows, step=3)
    assert histogram.counts[histogram.counts > 0].tolist() == [3] * 12


def test_rows_that_are_not_finite_are_refused_where_they_are_not_counted_too():
    rows = np.ones((1, 10), np.float32)
    rows[0, 7] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        Histogram().add_rows(rows, step=5)
