"""Solutions of layers against nearest rounding, by the loss that they are to minimise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcalib.numeric import integer_search, row_grids
from onnxcalib.numeric import solve as solve_module
from onnxcalib.numeric.gram import MomentSum
from onnxcalib.numeric.integer_search import excess_loss
from onnxcalib.numeric.output_metric import EQUAL_COLUMNS, OutputMetric
from onnxcalib.numeric.pairs import pair_sums
from onnxcalib.numeric.prior import Prior
from onnxcalib.numeric.rounding import quantize
from onnxcalib.numeric.solve import (
    DAMPING,
    round_layer,
    solve_layer,
)
from onnxcalib.spec import QuantSpec

FOUR, EIGHT = (QuantSpec(bits, signed=True, symmetric=True, axis=0) for bits in (4, 8))


def moments_of(inputs, targets):
    total = MomentSum()
    total.add(inputs, targets)
    return total.centre()


def draw_problem(seed, *, groups=1, channels=4, size=12, columns=300):
    """Correlated inputs (groups, K, P) with means, and a weight (groups, C, K)."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups, size, size)) @ rng.normal(size=(groups, size, columns))
    inputs += rng.normal(size=(groups, size, 1))
    return torch.from_numpy(inputs), torch.from_numpy(rng.normal(size=(groups, channels, size)))


def measure_loss(moments, weight, weights, ridge):
    """E|y - w x - b|^2 + ridge |w - W|^2 by row, up to a constant, at the best bias."""
    damping = ridge * moments.gram.diagonal(dim1=1, dim2=2).mean(1)[:, None]
    fit = ((weights @ moments.gram) * weights).sum(2) - 2 * (weights * moments.cross).sum(2)
    return fit + damping * (weights - weight).square().sum(2)


def weights_of(solution):
    return solution.integers * solution.scale[..., None]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.003, 0.3, 30.0]), st.integers(2, 20))
def test_no_row_is_worse_than_its_nearest_rounding(seed, ridge, size):
    inputs, weight = draw_problem(seed, groups=2, size=size)
    moments = moments_of(inputs, weight @ inputs)
    found = (solve_layer(moments, weight, FOUR, prior=Prior(ridge)), round_layer(weight, FOUR))
    solved, rounded = (measure_loss(moments, weight, weights_of(s), min(ridge, DAMPING)) for s in found)
    assert (solved <= rounded + 1e-9 * rounded.abs()).all()


@pytest.mark.parametrize(("spec", "share"), [(FOUR, 0.6), (EIGHT, 0.8)])
def test_solving_removes_much_of_the_error_of_nearest_rounding(spec, share):
    inputs, weight = draw_problem(0, channels=32, size=30)
    moments = moments_of(inputs, weight @ inputs)
    losses = [
        excess_loss(moments.gram, weight, s.integers, s.scale).sum()
        for s in (solve_layer(moments, weight, spec, prior=Prior(0.003)), round_layer(weight, spec))
    ]
    assert losses[0] < share * losses[1]


def test_a_search_of_greater_width_removes_more_of_the_error():
    inputs, weight = draw_problem(14, channels=16, size=40)
    moments = moments_of(inputs, weight @ inputs)
    found = [solve_layer(moments, weight, FOUR, prior=Prior(0.003), width=width) for width in (1, 4, 32)]
    one, four, many = (excess_loss(moments.gram, weight, s.integers, s.scale).sum() for s in found)
    assert many < four < 0.98 * one


def test_inputs_may_come_in_any_order():
    inputs, weight = draw_problem(15, groups=2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    targets = weight @ inputs
    straight = solve_layer(moments_of(inputs, targets), weight, FOUR, prior=Prior(), width=4)
    turned = solve_layer(moments_of(inputs[:, order], targets), weight[:, :, order], FOUR, prior=Prior(), width=4)
    assert torch.equal(turned.integers, straight.integers[:, :, order])
    torch.testing.assert_close(turned.bias, straight.bias, rtol=1e-4, atol=1e-5)  # optima are float32's


def test_integers_stay_on_the_grid_and_scales_are_positive():
    inputs, weight = draw_problem(1, groups=3)
    for spec in (FOUR, EIGHT):
        found = solve_layer(moments_of(inputs, weight @ inputs), weight, spec, prior=Prior())
        assert torch.equal(found.integers, found.integers.round().clip(spec.qmin, spec.qmax))
        assert (found.scale > 0).all()
        assert found.integers.shape == weight.shape and found.scale.shape == found.bias.shape == weight.shape[:2]


@pytest.mark.parametrize("spec", [FOUR, EIGHT])
def test_the_bias_leaves_no_mean_error(spec):
    inputs, weight = draw_problem(2, groups=2)
    targets = weight @ inputs + torch.arange(8.0).reshape(2, 4, 1)
    found = solve_layer(moments_of(inputs, targets), weight, spec, prior=Prior())
    error = targets - weights_of(found) @ inputs - found.bias[..., None]
    assert error.square().mean() > 1e-6
    assert error.mean(2).abs().max() < 1e-9


def test_inputs_that_never_vary_keep_their_float_weights():
    inputs, weight = draw_problem(3, size=10)
    inputs[:, 4:7] = 0.7
    found = solve_layer(moments_of(inputs, weight @ inputs), weight, FOUR, prior=Prior(0.3))
    off = (weights_of(found) - weight)[:, :, 4:7].abs()
    reach = found.scale[..., None] * FOUR.qmax
    assert (off <= found.scale[..., None] / 2 + (weight[:, :, 4:7].abs() - reach).clamp_min(0) + 1e-9).all()


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_a_layer_whose_inputs_are_all_dead_is_rounded(value):
    weight = draw_problem(4, groups=2)[1].float()
    inputs = torch.full((2, 12, 50), value)
    found = solve_layer(moments_of(inputs, weight @ inputs), weight, FOUR, prior=Prior(0.003))
    assert torch.isfinite(found.bias).all()
    assert ((weights_of(found) - weight).abs() <= found.scale[..., None] * 1.01).float().mean() > 0.95
    torch.testing.assert_close(
        weights_of(found) @ inputs.double() + found.bias[..., None],
        weight.double() @ inputs.double(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_weights_of_zero_stay_zero():
    inputs, weight = draw_problem(5)
    weight[:, 1] = 0
    found = solve_layer(moments_of(inputs, weight @ inputs), weight, FOUR, prior=Prior())
    assert torch.isfinite(found.scale).all() and weights_of(found)[:, 1].abs().max() < 1e-30


@pytest.mark.parametrize("prior", [Prior(1e9), Prior(0.003, trust=0.0)])
def test_with_a_prior_that_keeps_the_float_weights_the_targets_do_not_matter(prior):
    inputs, weight = draw_problem(6)
    targets = torch.randn(1, 4, inputs.shape[2], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    damped = Prior(min(prior.ridge, DAMPING))
    wanted = solve_layer(moments_of(inputs, weight @ inputs), weight, FOUR, prior=damped)
    found = solve_layer(moments_of(inputs, targets), weight, FOUR, prior=prior)
    assert torch.equal(found.integers, wanted.integers)
    torch.testing.assert_close(found.scale, wanted.scale, rtol=1e-6, atol=0)


def test_weights_compensate_for_the_error_of_the_quantized_prefix():
    inputs, weight = draw_problem(7, size=8)
    quantized = inputs.clone()
    quantized[:, ::2] *= 0.8
    quantized[:, 1] += 0.5 * quantized[:, 2]
    targets = weight @ inputs
    moments = moments_of(quantized, targets)

    def measure(solution):
        error = targets - weights_of(solution) @ quantized
        return (error - error.mean(2, keepdim=True)).square().mean()

    symmetric = solve_layer(moments_of(quantized, weight @ quantized), weight, EIGHT, prior=Prior(0.003))
    assert measure(solve_layer(moments, weight, EIGHT, prior=Prior(0.003))) < 0.05 * measure(symmetric)


def test_the_output_aware_metric_lowers_the_error_that_the_outputs_see():
    inputs, weight = draw_problem(8, size=24, columns=2000)
    moments = moments_of(inputs, weight @ inputs)
    few = torch.randn(24, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = OutputMetric((few @ few.T)[None], columns=10**4)
    losses = []
    for metric in (None, seen):
        found = solve_layer(moments, weight, FOUR, prior=Prior(0.003), output_metric=metric)
        losses.append(float(excess_loss(seen.gram, weight, found.integers, found.scale).sum()))
        assert (found.bias - (weight - weights_of(found)) @ moments.input_mean[0]).abs().max() < 1e-9
    assert losses[1] < 0.5 * losses[0]


def test_the_output_aware_metric_weighs_more_the_more_columns_it_has_and_nothing_where_it_is_zero():
    gram = torch.eye(4, dtype=torch.float64)[None] * 3
    other = torch.diag(torch.arange(4.0, dtype=torch.float64))[None]
    half = OutputMetric(other, columns=EQUAL_COLUMNS * 4).blend(gram)
    torch.testing.assert_close(half, gram / 2 + other)
    torch.testing.assert_close(OutputMetric(other, columns=10**9).blend(gram), 2 * other, atol=1e-6, rtol=0)
    assert torch.equal(OutputMetric(torch.zeros_like(gram), columns=10**9).blend(gram), gram)


def test_rounding_takes_the_scale_of_least_squared_weight_error():
    weight = draw_problem(8, groups=2)[1]
    weight[0, 0, 0] = 9.0
    for spec, shares in ((FOUR, row_grids.FEW_BIT_SHARES), (EIGHT, row_grids.EIGHT_BIT_SHARES)):
        found = round_layer(weight, spec)
        assert torch.equal(found.integers, quantize(weight, found.scale[..., None], 0, spec))
        assert not found.bias.any() and found.bias.shape == found.scale.shape
        error = (weights_of(found) - weight).square().sum(2)
        full = weight.abs().amax(2) / spec.qmax
        for share in shares:
            other = quantize(weight, (full * share)[..., None], 0, spec) * (full * share)[..., None]
            assert (error <= (other - weight).square().sum(2) + 1e-12).all()


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (integer_search, "LAZY_BATCH", 1000),
        (integer_search, "LAZY_BATCH", 3),
        (integer_search, "BRANCH_BYTES", 1),
        (solve_module, "ROW_BYTES", 1),
    ],
)
@pytest.mark.parametrize("width", [1, 5])
def test_the_order_of_the_work_does_not_change_the_result(monkeypatch, module, name, value, width):
    inputs, weight = draw_problem(11, size=70, groups=2)
    moments = moments_of(inputs, weight @ inputs)
    before = solve_layer(moments, weight, FOUR, prior=Prior(), width=width)
    monkeypatch.setattr(module, name, value)
    after = solve_layer(moments, weight, FOUR, prior=Prior(), width=width)
    assert torch.equal(before.integers, after.integers)
    torch.testing.assert_close(before.scale, after.scale)


def test_solving_leaves_the_moments_as_they_are():
    inputs, weight = draw_problem(12)
    moments = moments_of(inputs, weight @ inputs)
    before = moments.gram.clone(), moments.cross.clone()
    solve_layer(moments, weight, FOUR, prior=Prior())
    assert torch.equal(moments.gram, before[0]) and torch.equal(moments.cross, before[1])


BLOCKS = QuantSpec(4, signed=True, symmetric=True, axis=0, block=5)


def spread_blocks(solution, block, size):
    return solution.scale.repeat_interleave(block, 2)[..., :size]


def test_each_scale_block_has_a_scale_that_suits_it():
    inputs, weight = draw_problem(3, channels=16, size=12)
    weight[:, :, 5:10] *= 20
    moments = moments_of(inputs, weight @ inputs)
    losses = {}
    for name, spec in (("row", FOUR), ("blocks", BLOCKS)):
        solution = solve_layer(moments, weight, spec, prior=Prior(), width=4)
        scale = solution.scale if name == "row" else spread_blocks(solution, 5, 12)
        losses[name] = excess_loss(moments.gram, weight, solution.integers, scale).sum()
        assert solution.integers.abs().max() <= 8
        bias = moments.target_mean - (
            (solution.integers * (scale if scale.dim() == 3 else scale[..., None])) @ moments.input_mean[..., None]
        ).squeeze(-1)
        torch.testing.assert_close(solution.bias, bias)
    assert solution.scale.shape == (1, 16, 3)
    assert losses["blocks"] < 0.5 * losses["row"]


def test_solved_scale_blocks_are_no_worse_than_rounded_ones():
    inputs, weight = draw_problem(4, channels=8, size=23)
    moments = moments_of(inputs, weight @ inputs)
    solved, rounded = solve_layer(moments, weight, BLOCKS, prior=Prior(0.003)), round_layer(weight, BLOCKS)
    losses = [measure_loss(moments, weight, s.integers * spread_blocks(s, 5, 23), 0.003) for s in (solved, rounded)]
    assert (losses[0] <= losses[1] + 1e-9 * losses[1].abs()).all()


@pytest.mark.parametrize("block", [None, 4])
def test_rows_are_rounded_by_parts_as_all_at_once(block, monkeypatch):
    spec, weight = QuantSpec(bits=4, axis=0, block=block), torch.randn(2, 7, 12, generator=torch.manual_seed(0))
    whole = solve_module.round_layer(weight, spec)
    monkeypatch.setattr(solve_module, "ROUND_BYTES", 2 * 12 * 8 * 2)
    monkeypatch.setattr(solve_module, "STRIP_BYTES", 2 * 12 * 8 * 3)
    parts = solve_module.round_layer(weight, spec)
    turned = solve_module.round_layer(weight.mT.contiguous().mT, spec)  # as the weight of a MatMul comes
    for name in ("integers", "scale", "bias"):
        assert torch.equal(getattr(whole, name), getattr(parts, name)) and getattr(parts, name).is_contiguous()
        assert torch.equal(getattr(whole, name), getattr(turned, name))
    assert turned.integers.mT.is_contiguous()


def test_scale_blocks_are_rounded_each_by_itself():
    weight = draw_problem(5, channels=3, size=12)[1]
    found = round_layer(weight, BLOCKS)
    assert found.integers.shape == weight.shape and found.scale.shape == (1, 3, 3)
    alone = round_layer(weight[:, :, 5:10], QuantSpec(4, signed=True, symmetric=True, axis=0))
    assert torch.equal(found.integers[:, :, 5:10], alone.integers)
    torch.testing.assert_close(found.scale[:, :, 1], alone.scale, rtol=1e-6, atol=0)


ASYMMETRIC = QuantSpec(3, signed=True, axis=0)


@pytest.mark.parametrize("block", [None, 5])
def test_zero_points_move_the_integers_of_weights_that_are_all_of_one_sign(block):
    inputs, weight = draw_problem(6, channels=3, size=15, columns=100)
    weight = weight.abs() + 0.5
    spec = replace(ASYMMETRIC, block=block)
    for found in (
        round_layer(weight, spec),
        solve_layer(moments_of(inputs, weight @ inputs), weight, spec, prior=Prior()),
    ):
        assert found.zero.shape == found.scale.shape == ((1, 3) if block is None else (1, 3, 3))
        low, high = found.integers.min(), found.integers.max()
        assert spec.qmin <= low < 0 < high <= spec.qmax and (found.zero < 0).all()
        scale, zero = (
            x[..., None] if block is None else x.repeat_interleave(block, 2) for x in (found.scale, found.zero)
        )
        assert ((found.integers - zero) * scale - weight).abs().max() < 1.5 * scale.max()


LIMITED = replace(EIGHT, pair_limit=128)


@pytest.mark.parametrize("size", [16, 27])
@pytest.mark.parametrize("summing", [True, False])
def test_solved_and_rounded_integers_keep_their_pair_limit_in_the_order_of_the_kernel(size, summing):
    inputs, weight = draw_problem(0, groups=2, channels=16, size=size)
    weight = weight.abs()  # of one sign, so that most pairs would be beyond it
    moments = moments_of(inputs, weight @ inputs)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0)) if summing else None
    for found in (
        solve_layer(moments, weight, LIMITED, prior=Prior(), summing=order),
        round_layer(weight, LIMITED, summing=order),
    ):
        rows = (found.integers if order is None else found.integers[..., order]).double()
        assert int(pair_sums(rows).max()) <= 128
        assert int(pair_sums(rows).amax(2).min()) >= 110  # every row uses most of what it may


def test_a_pair_limit_costs_less_than_7_bits():
    inputs, weight = draw_problem(1, channels=64, size=64)
    moments = moments_of(inputs, weight @ inputs)

    def measure(spec):
        found = solve_layer(moments, weight, spec, prior=Prior(0.003))
        return 10 * float(excess_loss(moments.gram, weight, found.integers, found.scale).sum().log10())

    free, limited, seven = (measure(spec) for spec in (EIGHT, LIMITED, replace(EIGHT, bits=7)))
    assert free < limited < free + 3.5 and limited < seven - 2


def test_rows_whose_pairs_are_far_from_their_limit_are_rounded_as_without_it():
    inputs, weight = draw_problem(2, channels=8, size=12)
    weight[..., ::2] *= 1e-3  # one of each pair is next to nothing
    moments = moments_of(inputs, weight @ inputs)
    one, other = (round_layer(weight, spec) for spec in (EIGHT, LIMITED))
    torch.testing.assert_close(one.scale, other.scale, rtol=0.01, atol=0)
    losses = [
        excess_loss(moments.gram, weight, s.integers, s.scale).sum()
        for s in (solve_layer(moments, weight, spec, prior=Prior(0.003)) for spec in (EIGHT, LIMITED))
    ]
    assert losses[1] < 1.2 * losses[0]


ONE = replace(EIGHT, axis=None)
RESTRICTED = [replace(spec, power_of_two=power) for spec in (replace(FOUR, axis=None), ONE) for power in (False, True)]
RESTRICTED += [replace(spec, power_of_two=True) for spec in (FOUR, EIGHT)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(RESTRICTED), st.sampled_from([1, 4]), st.booleans())
def test_scales_keep_what_the_spec_restricts_and_beat_rounding(seed, spec, width, paired):
    inputs, weight = draw_problem(seed, groups=2, size=6)
    weight *= torch.tensor([1.0, 0.1, 3.0, 0.5])[:, None]
    spec = replace(spec, pair_limit=12 if spec.bits == 4 else 128) if paired else spec
    width = 1 if paired else width
    moments = moments_of(inputs, weight @ inputs)
    found = solve_layer(moments, weight, spec, prior=Prior(0.003), width=width)
    plain = round_layer(weight, spec)
    for solution in (found, plain):
        assert solution.scale.shape == weight.shape[:2]
        assert spec.axis is not None or len(solution.scale.unique()) == 1
        assert not spec.power_of_two or torch.all(solution.scale.log2() % 1 == 0)
        assert solution.integers.min() >= spec.qmin and solution.integers.max() <= spec.qmax
        assert spec.pair_limit is None or pair_sums(solution.integers.double()).max() <= spec.pair_limit
    losses = [measure_loss(moments, weight, weights_of(each), 0.003) for each in (found, plain)]
    pooled = [loss if spec.axis is not None else loss.sum() for loss in losses]
    assert torch.all(pooled[0] <= pooled[1] + 1e-6)


@pytest.mark.parametrize("axis", [0, None])
def test_powers_of_two_are_as_good_as_the_best_of_all_grids(axis):
    """Every exponent with every row of integers, where three inputs of 4 bits leave 4,096 rows."""
    spec = replace(FOUR, axis=axis, power_of_two=True)
    every = torch.cartesian_prod(*[torch.arange(-8.0, 8.0, dtype=torch.float64)] * 3)
    ratios = []
    for seed in range(12):
        inputs, weight = draw_problem(seed, channels=3, size=3)
        weight *= torch.tensor([1.0, 0.2, 2.0])[:, None]
        moments = moments_of(inputs, weight @ inputs)
        gram = moments.gram[0] + 0.001 * moments.gram[0].diagonal().mean() * torch.eye(3)
        solution = solve_layer(moments, weight, spec, prior=Prior(0.001), width=4)
        loss = excess_loss(gram[None], weight, solution.integers, solution.scale)[0]
        differences = [2.0**p * every[:, None] - weight for p in range(-7, 2)]
        losses = torch.stack([((each @ gram) * each).sum(2).amin(0) for each in differences])  # (exponents, rows)
        best = losses.amin(0).sum() if axis == 0 else losses.sum(1).amin()
        ratios.append(float(loss.sum() / best))
    assert min(ratios) > 0.999 and max(ratios) < 1.3 and np.mean(np.less(ratios, 1.001)) > 0.7


@pytest.mark.parametrize("width", [1, 8])
def test_each_row_of_two_bits_has_the_side_or_the_half_steps_that_serve_it(width):
    inputs, weight = draw_problem(5, groups=2, channels=12, size=14)
    moments, losses, found = moments_of(inputs, weight @ inputs), [], []
    plain = replace(FOUR, bits=2)
    for spec in (plain, replace(plain, signed_scale=True), replace(plain, signed_scale=True, half_steps=True)):
        solved = solve_layer(moments, weight, spec, prior=Prior(0.003), width=width)
        assert solved.integers.min() >= -2 and solved.integers.max() <= 1 and torch.all(solved.integers % 1 == 0)
        losses.append(measure_loss(moments, weight, solved.levels * solved.scale[..., None], 0.003).sum().item())
        found.append(solved)
    least = measure_loss(moments, weight, weight, 0.003).sum().item()
    assert losses[0] - least > 1.1 * (losses[1] - least) > 1.1 * 1.03 * (losses[2] - least)
    assert (found[0].scale > 0).all() and found[1].zero is None and (found[1].scale < 0).any()
    assert set(found[2].zero.unique().tolist()) == {-0.5, 0.0}


def test_one_scale_is_refitted_for_all_rows_together():
    inputs, weight = draw_problem(5, size=10)
    moments = moments_of(inputs, weight @ inputs)
    solution = solve_layer(moments, weight, replace(FOUR, axis=None), prior=Prior(0.003))
    at_scale = [
        measure_loss(moments, weight, solution.integers * solution.scale[..., None] * share, 0.003).sum()
        for share in (0.99, 1.0, 1.01)
    ]
    assert at_scale[1] < min(at_scale[0], at_scale[2])
