"""Columns against torch's own convolutions, and moments against those of all columns at once."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from onnxcalib.numeric import gram as gram_module
from onnxcalib.numeric import products as products_module
from onnxcalib.numeric.gram import (
    Convolution,
    Moments,
    MomentSum,
    Unit,
    choose_positions,
    divide,
    factorize,
    flatten_rows,
    gather_columns,
    output_sizes,
    project,
    unfold,
)
from onnxcalib.numeric.products import shift_to_int8

CONVS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def convolve(x, weight, convolution):
    """The convolution by torch, its asymmetric pads applied beforehand."""
    rank = len(convolution.kernel)
    pads = [p for d in reversed(range(rank)) for p in (convolution.pads[d], convolution.pads[d + rank])]
    padded = functional.pad(x, pads)
    return CONVS[rank](padded, weight, None, convolution.strides, 0, convolution.dilations, convolution.groups)


def check_columns(x, weight, convolution, positions=None):
    """The weight's rows times what unfold gives is what gather_columns takes from the convolution."""
    wanted = convolve(x, weight, convolution)
    positions = torch.arange(wanted[0, 0].numel()) if positions is None else positions
    columns = unfold(x, convolution, positions)
    rows = weight.reshape(convolution.groups, weight.shape[0] // convolution.groups, -1)
    assert columns.shape == (convolution.groups, rows.shape[2], len(x) * len(positions))
    torch.testing.assert_close(
        rows @ columns, gather_columns(wanted, positions, convolution.groups), atol=1e-9, rtol=1e-9
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("dilations", [1, 2])
def test_columns_times_rows_are_the_convolution(rank, groups, strides, dilations):
    torch.manual_seed(0)
    kernel, spatial = (3, 2, 1)[:rank], (9, 7, 5)[:rank]
    pads = (1, 0, 2, 2, 1, 0)[:rank] + (0, 2, 1)[:rank]
    convolution = Convolution(kernel, (strides,) * rank, (dilations,) * rank, pads, groups)
    x = torch.randn(3, 4, *spatial, dtype=torch.float64)
    check_columns(x, torch.randn(8, 4 // groups, *kernel, dtype=torch.float64), convolution)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("spacing", "dilation", "cut", "more"), [(1, 1, 0, 0), (2, 1, 1, 1), (3, 2, 2, 2), (1, 1, 2, 0)]
)
def test_columns_of_a_spaced_input_are_those_of_a_transposed_convolution(rank, groups, spacing, dilation, cut, more):
    torch.manual_seed(0)
    kernel, spatial = (3, 2, 2)[:rank], (5, 4, 4)[:rank]
    x = torch.randn(3, 4, *spatial, dtype=torch.float64)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64)
    transposed = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[rank]
    wanted = transposed(x, weight, None, spacing, cut, more, groups, dilation)
    spans = [(each - 1) * dilation - cut for each in kernel]
    pads = (*spans, *(each + more for each in spans))
    convolution = Convolution(kernel, (1,) * rank, (dilation,) * rank, pads, groups, (spacing,) * rank)
    assert output_sizes(convolution, spatial) == wanted.shape[2:]
    positions = torch.arange(wanted[0, 0].numel())
    rows = weight.reshape(groups, 4 // groups, 3, -1).transpose(1, 2).reshape(groups, 3, -1)
    columns = unfold(x, convolution, positions)
    torch.testing.assert_close(rows @ columns, gather_columns(wanted, positions, groups), atol=1e-9, rtol=1e-9)


def test_columns_are_taken_at_the_chosen_positions_alone():
    torch.manual_seed(0)
    convolution = Convolution((3, 3), (2, 1), (1, 2), (0, 2, 1, 1), groups=2)
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    check_columns(x, torch.randn(6, 2, 3, 3, dtype=torch.float64), convolution, torch.tensor([0, 5, 11]))


def test_each_value_that_is_read_is_changed_once_and_padding_never():
    torch.manual_seed(0)
    convolution = Convolution((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
    x, seen = torch.randn(2, 4, 8, 8, dtype=torch.float64), []

    def change(values):
        seen.append(values)
        return 2 * values + 1

    positions = torch.tensor([0, 1, 5])
    columns = unfold(x, convolution, positions, change)
    assert torch.equal(columns, unfold(2 * x + 1, convolution, positions)) and (columns == 0).any()
    # Rows 0 and 1 in columns 0 to 3, rows 2 and 3 in columns 1 to 3, and one slot for all padding.
    (values,) = seen
    assert values.shape == (2, 4, 8 + 6 + 1)


def test_columns_with_wrong_pads_differ():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 8, 8, dtype=torch.float64), torch.randn(4, 4, 3, 3, dtype=torch.float64)
    one, other = (Convolution((3, 3), (1, 1), (1, 1), pads) for pads in ((0, 1, 2, 1), (2, 1, 0, 1)))
    positions = torch.arange(convolve(x, weight, one)[0, 0].numel())
    columns = unfold(x, other, positions)
    wanted = gather_columns(convolve(x, weight, one), positions, 1)
    assert not torch.allclose(weight.reshape(1, 4, -1) @ columns, wanted)


def test_rows_of_any_rank_become_columns():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 4), torch.randn(4, 6)
    product = weight.T @ flatten_rows(x)
    torch.testing.assert_close(product, flatten_rows(x @ weight))
    assert flatten_rows(x).shape == (1, 4, 30)


def test_positions_are_distinct_in_order_and_repeat_with_the_seed():
    chosen = [choose_positions((5, 6), 7, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*chosen) and len(chosen[0].unique()) == 7
    assert torch.equal(chosen[0], chosen[0].sort().values) and 0 <= chosen[0][0] and chosen[0][-1] < 30
    generator = torch.Generator().manual_seed(3)
    assert not torch.equal(choose_positions((5, 6), 7, generator), choose_positions((5, 6), 7, generator))


@pytest.mark.parametrize("wanted", [None, 30, 31])
def test_all_positions_are_taken_where_no_fewer_are_wanted(wanted):
    assert torch.equal(choose_positions((5, 6), wanted, torch.Generator()), torch.arange(30))


def correlated(groups, size, columns, seed):
    """Inputs (groups, size, columns) with correlations and means, and targets of three channels."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups, size, size)) @ rng.normal(size=(groups, size, columns))
    inputs += rng.normal(size=(groups, size, 1))
    targets = rng.normal(size=(groups, 3, size)) @ inputs + rng.normal(size=(groups, 3, columns)) + 2
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def moments_at_once(inputs, targets):
    means = inputs.mean(2), targets.mean(2)
    x, y = inputs - means[0][..., None], targets - means[1][..., None]
    return Moments(x @ x.mT / x.shape[2], y @ x.mT / x.shape[2], *means, x.shape[2])


def check_equal(one, other, tolerance):
    for name in ("gram", "cross", "input_mean", "target_mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=tolerance, rtol=tolerance)
    assert one.columns == other.columns


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_streamed_moments_are_those_of_all_columns_at_once(parts, groups, size, seed):
    inputs, targets = correlated(groups, size, sum(parts), seed)
    total = MomentSum()
    for x, y in zip(inputs.split(parts, 2), targets.split(parts, 2), strict=True):
        total.add(x, y)
    check_equal(total.centre(), moments_at_once(inputs, targets), 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_pooled_moments_of_two_parts_are_those_of_all_columns(first, second, seed):
    inputs, targets = correlated(2, 4, first + second, seed)
    totals = [MomentSum(), MomentSum()]
    for total, x, y in zip(totals, inputs.split((first, second), 2), targets.split((first, second), 2), strict=True):
        total.add(x, y)
    one, other = (total.centre() for total in totals)
    check_equal(one.pooled(other), moments_at_once(inputs, targets), 1e-9)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=4), st.integers(0, 99))
def test_merged_sums_are_those_of_all_columns_and_take_more_of_them(parts, seed):
    inputs, targets = correlated(2, 4, sum(parts) + 1, seed)
    total = MomentSum()
    for x, y in zip(inputs.split([*parts, 1], 2), targets.split([*parts, 1], 2), strict=True):
        part = MomentSum()
        part.add(x, y)
        total.merge(pickle.loads(pickle.dumps(part)))
    check_equal(total.centre(), moments_at_once(inputs, targets), 1e-9)
    total.add(inputs, targets)
    check_equal(total.centre(), moments_at_once(*(torch.cat((x, x), 2) for x in (inputs, targets))), 1e-9)


@pytest.mark.parametrize("room", [1, 7, 100])
def test_columns_of_several_axes_or_transposed_are_added_whatever_room_they_find(monkeypatch, room):
    monkeypatch.setattr(gram_module, "WAITING_BYTES", room * 2 * (5 + 3) * 8)
    inputs, targets = correlated(2, 5, 60, 0)
    total, rows = MomentSum(), MomentSum()
    for x, y in zip(inputs.split((6, 42, 12), 2), targets.split((6, 42, 12), 2), strict=True):
        total.add(*(each.unflatten(2, (-1, 6))[..., :4] for each in (x, y)))
        total.add(*(each.unflatten(2, (-1, 6))[..., 4:] for each in (x, y)))
        rows.add(*(each.mT.contiguous().mT for each in (x, y)))
    for each in (total, rows):
        check_equal(each.centre(), moments_at_once(inputs, targets), 1e-9)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_products_in_tiles_are_those_of_all_inputs_at_once(monkeypatch, size):
    monkeypatch.setattr(products_module, "TILE", size)
    inputs, targets = correlated(2, 5, 40, 0)
    total = MomentSum()
    for x, y in zip(inputs.split(20, 2), targets.split(20, 2), strict=True):
        total.add(x, y)
    check_equal(total.centre(), moments_at_once(inputs, targets), 1e-9)


def test_a_small_variance_beside_a_large_mean_survives_float32():
    inputs, targets = correlated(1, 5, 4000, 0)
    wanted = moments_at_once(inputs, targets)
    total = MomentSum()
    for x, y in zip(inputs.split(500, 2), targets.split(500, 2), strict=True):
        total.add((x + 3000).float(), (y - 2000).float())
    found = total.centre()
    torch.testing.assert_close(found.gram, wanted.gram, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.cross, wanted.cross, rtol=1e-3, atol=1e-3)


def test_a_batch_without_columns_adds_nothing():
    inputs, targets = correlated(1, 3, 6, 0)
    total = MomentSum()
    for part in (inputs[:, :, :0], inputs, inputs[:, :, :0]):
        total.add(part, targets[:, :, : part.shape[2]])
    check_equal(total.centre(), moments_at_once(inputs, targets), 1e-9)


def test_moments_stay_as_they_are_when_they_are_pooled_and_columns_added():
    inputs, targets = correlated(1, 3, 6, 0)
    part, total = MomentSum(), MomentSum()
    part.add(inputs[..., :2], targets[..., :2])
    total.add(inputs, targets)
    one = total.centre()
    one.pooled(part.centre()).about_zero()
    total.add(inputs + 1, targets)
    check_equal(one, moments_at_once(inputs, targets), 1e-9)


def test_inputs_that_never_vary_have_no_variance():
    total = MomentSum()
    for _ in range(3):
        total.add(torch.full((1, 4, 33), 0.3), torch.full((1, 2, 33), -1.7))
    found = total.centre()
    assert found.gram.abs().max() < 1e-12 and found.cross.abs().max() < 1e-12
    torch.testing.assert_close(found.input_mean, torch.full((1, 4), 0.3, dtype=torch.float64), rtol=1e-6, atol=0)


def test_moments_about_zero_are_plain_means_of_products():
    inputs, targets = correlated(2, 4, 30, 1)
    total = MomentSum()
    total.add(inputs, targets)
    found = total.centre().about_zero()
    torch.testing.assert_close(found.gram, inputs @ inputs.mT / 30)
    torch.testing.assert_close(found.cross, targets @ inputs.mT / 30)
    assert not found.input_mean.any() and not found.target_mean.any() and found.columns == 30


@pytest.mark.parametrize("pads", [(0, 0), (1, 1), (0, 2)])
@pytest.mark.parametrize(
    ("rank", "strides", "dilations"), [(1, 1, 1), (1, 2, 1), (2, 1, 1), (2, 2, 1), (2, 1, 2), (3, 1, 1)]
)
def test_gradients_of_probes_are_columns_weighted_by_them_and_summed_over_positions(rank, strides, dilations, pads):
    convolution = Convolution(
        (3,) * rank, (strides,) * rank, (dilations,) * rank, (pads[0],) * rank + (pads[1],) * rank
    )
    x = torch.randn(3, 2, *(7,) * rank)
    positions = math.prod(output_sizes(convolution, [7] * rank))
    columns = unfold(x, convolution, torch.arange(positions)).reshape(-1, positions, 3)
    probes = torch.randn(3, 4, positions)
    found = project(x, probes, convolution)
    torch.testing.assert_close(
        found, torch.einsum("kpn,nmp->knm", columns, probes).reshape(-1, 12), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (3, 2, 4, 5)])
def test_gradients_of_probes_of_a_matrix_product_are_rows_weighted_by_them_and_summed(shape):
    x = torch.randn(shape)
    probes = torch.randn(3, 4, math.prod(shape[1:-1]))
    columns = flatten_rows(x).reshape(5, 3, -1)
    torch.testing.assert_close(project(x, probes), torch.einsum("knp,nmp->knm", columns, probes).reshape(5, 12))


@pytest.mark.parametrize(
    ("value", "values_finite", "products_finite"),
    [(1.0, True, True), (1e25, True, False), (torch.inf, False, False), (torch.nan, False, False)],
)
def test_moments_tell_values_that_are_not_finite_from_products_that_overflow(value, values_finite, products_finite):
    inputs = torch.ones(1, 2, 8)
    inputs[0, 1, 5:] = value
    total = MomentSum()
    total.add(inputs, torch.ones(1, 1, 8))
    moments = total.centre()
    assert (moments.seen_finite, moments.finite) == (values_finite, products_finite)


def test_a_matrix_that_is_positive_definite_has_a_factor_whatever_float32_rounds():
    values = torch.rand(50, 24, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = (values @ values.mT).float() + 2e-7 * torch.eye(24)  # float32's factorization fails in six
    factor = factorize(gram)
    assert factor.dtype == torch.float32 and torch.equal(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.mT, gram, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="positive-definite"):
        factorize(-gram)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("multiplies", [False, True])
def test_moments_of_integers_are_those_of_the_values_that_they_stand_for(groups, turned, multiplies, monkeypatch):
    if not multiplies:
        monkeypatch.setattr(products_module, "multiplies_integers", lambda: False)
    monkeypatch.setattr(gram_module, "WAITING_BYTES", 2**16)
    for name, value in (("LONGEST", 64), ("SLICE", 24), ("TILE", 16)):
        monkeypatch.setattr(products_module, name, value)
    torch.manual_seed(0)
    integers = (torch.randn(groups, 40, 900) * 30 + 90).clamp(0, 255).to(torch.uint8)
    integers = integers.mT.contiguous().mT if turned else integers
    values = (integers.double() - 70) * 0.02
    targets = (torch.randn(groups, 5, 40, dtype=torch.float64) @ values + 3).float()
    found = MomentSum(Unit(0.02, 70 - 128))
    for start in (0, 300, 800):
        stop = {0: 300, 300: 800, 800: 900}[start]
        found.add(shift_to_int8(integers[..., start:stop]), targets[..., start:stop])
    moments, wanted = found.centre(), moments_at_once(values, targets.double())
    for name in ("gram", "cross", "input_mean", "target_mean"):
        torch.testing.assert_close(getattr(moments, name), getattr(wanted, name), rtol=1e-5, atol=1e-5)
    if multiplies and products_module.multiplies_integers() and groups == 1:
        torch.testing.assert_close(moments.gram, wanted.gram, rtol=1e-12, atol=1e-12)


def test_sums_of_integers_are_exact_where_float32_has_no_odd_numbers():
    integers = torch.randint(100, 128, (1, 2, 2**19), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    integers[:, :, : products_module.SLICE] = 0
    *_, sums, _ = products_module.multiply(integers, torch.zeros(1, 1, 2**19))
    assert torch.equal(sums, integers.sum(2).double())


@pytest.mark.parametrize("size", [1, 2, 129])
@pytest.mark.parametrize("count", [1, 2, 300])
def test_moments_of_integers_are_right_for_any_number_of_inputs_and_columns(size, count):
    rows = torch.randint(-128, 128, (count, size), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    found = MomentSum()
    found.add(flatten_rows(rows), torch.ones(1, 1, count))
    wanted = moments_at_once(flatten_rows(rows).double(), torch.ones(1, 1, count).double())
    torch.testing.assert_close(found.centre().gram, wanted.gram, rtol=1e-5, atol=1e-2)


def test_padding_of_integers_is_their_zero_point():
    torch.manual_seed(0)
    convolution = Convolution((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    integers, positions = torch.randint(0, 255, (2, 4, 5, 5), dtype=torch.uint8), torch.tensor([0, 7, 24])
    columns = unfold(integers, convolution, positions, shift_to_int8, fill=90 - 128)
    assert columns.dtype == torch.int8
    torch.testing.assert_close((columns.float() + 128 - 90), unfold(integers.float() - 90, convolution, positions))


@pytest.mark.parametrize("upper", [False, True])
def test_rows_divided_by_a_factor_give_them_back_as_products_with_its_square(upper):
    factor = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3 * torch.eye(5)
    factor = factor.triu() if upper else factor.tril()
    rows = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(divide(rows, factor, upper=upper) @ factor @ factor.mT, rows)
