"""Integers against brute force and nearest rounding, by the loss that they are to minimise."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.numeric import integer_search
from onnxcalib.numeric.integer_search import Metric, excess_loss, gptq, order_inputs, search
from onnxcalib.numeric.pairs import pair_sums
from onnxcalib.numeric.rounding import quantize
from onnxcalib.spec import QuantSpec
from tests.gram_matrices import draw_rows, draw_tiny

FOUR = QuantSpec(4, signed=True, symmetric=True, axis=0)


def metric_of(gram):
    """The metric, in which work is done in float64."""
    return Metric.of(gram)


def try_all(gram, optimum, scale, spec):
    """The least loss (1, R) over all integers."""
    grid = itertools.product(range(spec.qmin, spec.qmax + 1), repeat=optimum.shape[2])
    integers = torch.tensor(list(grid), dtype=torch.float64)[None]
    rows = (optimum[:, row : row + 1].expand(integers.shape) for row in range(optimum.shape[1]))
    scales = scale[:, :1].expand(integers.shape[:2])
    return torch.stack([excess_loss(gram, row, integers, scales).min() for row in rows])[None]


def test_gptq_on_inputs_without_correlation_is_nearest_rounding():
    weight = draw_rows(9, channels=4, size=12)[1]
    scale = weight.abs().amax(2) / 7
    metric = metric_of(4 * torch.eye(12, dtype=torch.float64)[None])
    assert torch.equal(gptq(metric, weight, scale, FOUR)[0], quantize(weight, scale[..., None], 0, FOUR))


def test_gptq_beats_nearest_rounding_where_inputs_are_correlated():
    gram, weight = draw_rows(10)
    scale = weight.abs().amax(2) / 7
    found, loss = gptq(metric_of(gram), weight, scale, FOUR)
    nearest = quantize(weight, scale[..., None], 0, FOUR)
    torch.testing.assert_close(loss, excess_loss(gram, weight, found, scale), rtol=1e-9, atol=0)
    assert loss.sum() < 0.7 * excess_loss(gram, weight, nearest, scale).sum()


def test_a_search_that_keeps_all_branches_mostly_finds_the_best_of_all_integers():
    exact = []
    for seed in range(60):
        gram, _, spec = draw_tiny(seed, 2 + seed % 2)
        # Far inside the grid the best integer is mostly, not always, one of the two next to the compensated weight.
        optimum = torch.from_numpy(np.random.default_rng(seed).uniform(-0.4, 0.4, size=(1, 3, gram.shape[1])))
        scale = torch.full(optimum.shape[:2], 0.9, dtype=torch.float64)
        best = try_all(gram, optimum, scale, spec)
        loss = excess_loss(gram, optimum, search(metric_of(gram), optimum, scale, spec, width=4**4), scale)
        assert (loss >= best - 1e-9).all()
        exact += (loss <= best + 1e-9).flatten().tolist()
    assert np.mean(exact) > 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_a_search_stays_on_the_grid(seed, width):
    gram, weight = draw_rows(seed, groups=2, channels=3, size=7)
    found = search(metric_of(gram), 3 * weight, weight.abs().amax(2) / 7, FOUR, width=width)
    assert found.shape == weight.shape
    assert torch.equal(found, found.round().clip(FOUR.qmin, FOUR.qmax))


@pytest.mark.parametrize("size", [1, 12, 32, 70])
def test_a_search_of_width_one_is_gptq(size):
    gram, weight = draw_rows(1, groups=3, channels=5, size=size)
    scale, metric = weight.abs().amax(2) / 7, metric_of(gram)
    assert torch.equal(search(metric, weight, scale, FOUR, width=1), gptq(metric, weight, scale, FOUR)[0])


def test_more_branches_find_better_integers():
    gram, weight = draw_rows(2, groups=2)
    scale, metric = weight.abs().amax(2) / 7, metric_of(gram)
    losses = [excess_loss(gram, weight, search(metric, weight, scale, FOUR, width=w), scale).sum() for w in (1, 4, 32)]
    assert losses[2] < losses[1] < 0.9 * losses[0]


def test_inputs_are_rounded_by_descending_power():
    gram = torch.diag_embed(torch.tensor([[1.0, 3.0, 2.0, 3.0], [4.0, 1.0, 1.0, 0.0]]))
    assert order_inputs(gram).tolist() == [[1, 3, 2, 0], [0, 1, 2, 3]]


def test_the_factor_is_upper_triangular_and_its_square_is_the_gram_matrix_in_units_of_its_power():
    gram, _ = draw_rows(3, groups=2, channels=4, size=9)
    gram[1] *= 1e30
    metric = metric_of(gram)
    torch.testing.assert_close(metric.upper @ metric.upper.mT, metric.gram)
    torch.testing.assert_close(metric.gram * metric.power[..., None], gram)
    assert torch.equal(metric.upper, metric.upper.triu())
    assert all(x.dtype == torch.float32 and x.isfinite().all() for x in Metric.of(gram.float())[:2])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]))
def test_equal_scales_for_all_inputs_give_what_one_scale_gives(seed, width):
    gram, weight = draw_rows(seed, channels=5, size=40)
    scale = weight.abs().amax(2) / 6
    each = scale[..., None].expand(weight.shape).contiguous()
    metric = metric_of(gram)
    assert torch.equal(gptq(metric, weight, scale, FOUR)[0], gptq(metric, weight, each, FOUR)[0])
    torch.testing.assert_close(gptq(metric, weight, scale, FOUR)[1], gptq(metric, weight, each, FOUR)[1].sum(2))
    found = [search(metric, weight, s, FOUR, width=width) for s in (scale, each)]
    assert torch.equal(*found)
    torch.testing.assert_close(*(excess_loss(gram, weight, found[0], s) for s in (scale, each)))


def test_with_a_scale_for_each_input_a_search_of_great_width_comes_near_the_least_loss():
    for seed in range(5):
        gram, optimum, spec = draw_tiny(seed, 2)
        scale = torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 2, size=optimum.shape))
        grid = torch.tensor(list(itertools.product(range(-2, 2), repeat=optimum.shape[2])), dtype=torch.float64)[None]
        found = search(metric_of(gram), optimum, scale, spec, width=256)
        for row in range(3):
            rows, scales = (x[:, row : row + 1].expand(grid.shape) for x in (optimum, scale))
            least = excess_loss(gram, rows, grid, scales).min()
            mine = excess_loss(gram, optimum, found, scale)[0, row]
            assert mine <= 1.5 * least + 1e-9  # the best integer need not be one of the two forks


LIMITED = QuantSpec(8, signed=True, symmetric=True, axis=0, pair_limit=128)


def assert_within_limit(integers):
    assert int(pair_sums(integers).max()) <= LIMITED.pair_limit
    assert LIMITED.qmin <= int(integers.min()) and int(integers.max()) <= LIMITED.qmax
    assert torch.equal(integers, integers.round())


@pytest.mark.parametrize("size", [40, 41, 96])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_pairs_of_integers_stay_within_their_limit(size, share):
    """At a share of 1 hardly any pair is beyond the limit before it is clamped, at 0.5 many are."""
    gram, weight = draw_rows(1, size=size, groups=2)
    scale = share * weight.abs().amax(2) / 64
    metric = metric_of(gram)
    rounded, searched = gptq(metric, weight, scale, LIMITED)[0], search(metric, weight, scale, LIMITED, width=1)
    assert torch.equal(rounded, searched)
    assert_within_limit(rounded)
    if share < 1:
        assert int(pair_sums(rounded).max()) == LIMITED.pair_limit


def test_a_limit_that_no_pair_can_exceed_changes_nothing():
    gram, weight = draw_rows(3)
    free, far = (QuantSpec(8, signed=True, symmetric=True, axis=0, pair_limit=limit) for limit in (None, 256))
    scale = weight.abs().amax(2) / 127
    assert torch.equal(*(gptq(metric_of(gram), weight, scale, spec)[0] for spec in (free, far)))


def test_a_window_ends_with_the_best_of_its_branches(monkeypatch):
    gram, weight = draw_rows(5, size=24)
    scale, metric = weight.abs().amax(2) / 7, metric_of(gram)
    losses = []
    for size in (4, 24):
        monkeypatch.setattr(integer_search, "WINDOW", size)
        losses.append(excess_loss(gram, weight, search(metric, weight, scale, FOUR, width=8), scale).sum())
    assert losses[1] < losses[0] < excess_loss(gram, weight, gptq(metric, weight, scale, FOUR)[0], scale).sum()
