import numpy as np
import pytest

from onnxcalib.numeric.metrics import CHUNK, Accuracy, Comparison, find_class_axis, mean_sqnr, scores_classes, top_class


def compare(*pairs):
    comparison = Comparison()
    for reference, other in pairs:
        comparison.add(np.asarray(reference, np.float32), np.asarray(other, np.float32))
    return comparison


def test_noise_of_a_known_power_has_the_known_ratio(draw):
    signal, noise = draw(300_000), draw(300_000)[::-1]
    comparison = compare((signal, signal + 0.01 * noise))
    assert comparison.sqnr_db == pytest.approx(40, abs=0.05)
    assert comparison.cosine == pytest.approx(1 / np.sqrt(1 + 1e-4), abs=1e-6)
    assert comparison.max_abs_error == pytest.approx(0.01 * np.abs(noise).max(), rel=1e-3)


def test_the_mean_sqnr_of_tensors_is_that_of_their_mean_relative_error():
    assert mean_sqnr([0.01]) == pytest.approx(20)
    assert mean_sqnr([0.0, 0.02]) == pytest.approx(20)
    assert mean_sqnr([0.0, 0.0]) == float("inf")


def test_equal_tensors_have_no_error(draw):
    x = draw(5, 4)
    comparison = compare((x, x))
    assert comparison.sqnr_db == float("inf")
    assert comparison.cosine == pytest.approx(1) and comparison.max_abs_error == 0


def test_batches_count_as_one_tensor(draw):
    a, b = draw(64, 3, 7), draw(64, 3, 7) + 1
    whole, parts = compare((a, b)), compare((a[:10], b[:10]), (a[10:], b[10:]))
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db)
    assert parts.cosine == pytest.approx(whole.cosine)
    assert parts.max_abs_error == whole.max_abs_error


def test_the_largest_error_has_no_sign():
    assert compare(([0.0, 0.0], [3.0, -1.0])).max_abs_error == 3
    assert compare(([0.0, 0.0], [1.0, -3.0])).max_abs_error == 3


def test_a_tensor_of_zeros_is_unlike_any_other():
    assert compare(([0.0], [1.0])).cosine == 0
    assert compare(([0.0], [1.0])).sqnr_db < -1000
    assert compare(([0.0], [0.0])).cosine == 1


def test_agreement_counts_equal_top_classes():
    scores = [[0.1, 0.9, 0.0], [0.5, 0.2, 0.3], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    others = [[0.0, 0.2, 0.1], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2], [0.0, 0.5, 0.0]]
    assert compare((scores[:3], others[:3]), (scores[3:], others[3:])).agreement == 0.5


def test_scores_may_have_spatial_axes_of_one(draw):
    x = draw(2, 5, 1, 1)
    assert compare((x, x)).agreement == 1


@pytest.mark.parametrize("shape", [(7,), (4, 1), (4, 3, 2), (4, 3, 8, 8)])
def test_other_shapes_have_no_agreement(draw, shape):
    assert compare((draw(*shape), draw(*shape))).agreement is None


def test_embeddings_of_length_one_have_no_agreement_and_certain_probabilities_do(draw):
    rows = draw(5, 4)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert compare((rows, rows)).agreement is None
    assert compare((np.eye(4), np.eye(4))).agreement == 1


def test_a_row_of_class_scores_that_has_length_one_by_chance_counts(draw):
    rows = np.array([[3.0, 4.0], [-0.6, 0.8]], np.float32)
    assert compare(*((row[None], row[None]) for row in rows)).agreement == 1
    assert compare(*((row[None] / 5, row[None] / 5) for row in -rows[:1])).agreement is None


def test_nothing_compared_has_no_agreement():
    assert Comparison().agreement is None


def test_powers_are_sums_over_samples_of_both_norms_and_their_products(draw):
    a, b = draw(7, 3, 50), draw(7, 3, 50)
    comparison = Comparison()
    comparison.add(a[:4], b[:4], 4)
    comparison.add(a[4:], b[4:], 3)
    signal, error = (np.square(x.astype(np.float64)).sum(axis=(1, 2)) for x in (a, a.astype(np.float64) - b))
    wanted = [signal.sum(), error.sum(), (signal**2).sum(), (error**2).sum(), (signal * error).sum()]
    np.testing.assert_allclose(comparison.powers, wanted, rtol=1e-6)
    assert comparison.samples == 7


@pytest.mark.parametrize("shape", [(), (5,), (3, 4)])
def test_what_has_no_row_for_each_sample_is_one_sample(draw, shape):
    a, b = draw(*shape), draw(*shape)
    comparison = Comparison()
    comparison.add(np.asarray(a), np.asarray(b), 6)
    assert comparison.samples == 1
    assert comparison.powers[2] == pytest.approx(comparison.powers[0] ** 2)


@pytest.mark.parametrize("columns", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_chunks_add_up_to_the_whole(draw, columns):
    a, b = draw(3, columns), draw(3, columns)
    comparison = Comparison()
    comparison.add(a, b, 3)
    error = a.astype(np.float64) - b
    assert comparison.powers[1] == pytest.approx(np.square(error).sum())
    assert comparison.powers[3] == pytest.approx((np.square(error).sum(axis=1) ** 2).sum())
    assert comparison.max_abs_error == np.abs(error).max() and comparison.samples == 3


# What is not finite, empty, constant or zero

NOT_FINITE = [np.nan, np.inf, -np.inf]


def measures(found):
    return found.sqnr_db, found.cosine, found.max_abs_error, found.relative_error


@pytest.mark.parametrize("other", [*NOT_FINITE, 0, 5])
@pytest.mark.parametrize("value", NOT_FINITE)
def test_values_of_the_reference_that_are_not_finite_are_left_out_whatever_the_other_has(value, other):
    comparison = compare(([1.0, value, 2.0], [1.0, other, 2.5]))
    assert comparison.powers[:2].tolist() == [5, 0.25] and comparison.max_abs_error == 0.5
    assert comparison.cosine == pytest.approx(6 / np.sqrt(5 * 7.25))
    assert (comparison.left_out, comparison.broken, comparison.values) == (1, 0, 2)


@pytest.mark.parametrize("value", NOT_FINITE)
def test_values_that_are_not_finite_where_the_reference_is_are_an_infinite_error(value):
    comparison = compare(([1.0, 2.0], [1.0, value]), ([1.0], [1.0]))
    assert measures(comparison) == (-np.inf, 0, np.inf, np.inf)
    assert (comparison.left_out, comparison.broken, comparison.values) == (0, 1, 3)


@pytest.mark.parametrize("pairs", [(), (([], []),), (([np.nan, np.inf], [np.nan, 1.0]),)])
def test_where_nothing_is_compared_no_measure_is_good(pairs):
    comparison = compare(*pairs)
    assert np.isnan(measures(comparison)[:3]).all() and comparison.relative_error == np.inf
    assert (comparison.samples, comparison.values, comparison.agreement) == (0, 0, None)


def test_samples_without_a_finite_value_do_not_count():
    comparison = Comparison()
    comparison.add(np.array([[1.0, 2], [np.nan, np.inf]]), np.array([[1.0, 3], [0, 0]]), 2)
    assert comparison.samples == 1 and comparison.powers.tolist() == [5, 1, 25, 1, 5]


def test_zeros_have_no_error_against_zeros_of_either_sign_and_a_large_one_against_others():
    assert measures(compare(([0.0, -0.0], [-0.0, 0.0]))) == (np.inf, 1, 0, 0)
    sqnr, *others = measures(compare(([0.0, 0.0], [0.0, 2.0])))
    assert sqnr < -1000 and others == [0, 2, np.inf]
    assert measures(compare(([0.0, 2.0], [0.0, 0.0]))) == (0, 0, 2, 1)


def test_constants_are_compared_as_other_values_are():
    assert measures(compare(([2.0] * 4, [2.0] * 4))) == (np.inf, 1, 0, 0)
    assert measures(compare(([2.0] * 4, [3.0] * 4))) == (pytest.approx(10 * np.log10(4)), 1, 1, 0.25)


def test_denormals_are_values_and_not_zeros():
    tiny = np.float32(1e-44)
    assert measures(compare(([tiny], [tiny]))) == (np.inf, 1, 0, 0)
    assert compare(([tiny], [0.0])).sqnr_db == pytest.approx(0) and compare(([tiny], [0.0])).cosine == 0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_doubles_whose_squares_leave_float64_never_look_good(size):
    comparison = Comparison()
    comparison.add(np.array([size, 0.0]), np.array([0.0, size]), 1)
    assert comparison.sqnr_db <= 0 and comparison.cosine == 0 and comparison.relative_error == np.inf
    same = Comparison()
    same.add(np.array([size, 0.0]), np.array([size, 0.0]), 1)
    assert same.sqnr_db == np.inf and same.relative_error == 0


def test_the_mean_sqnr_of_no_tensor_or_of_nan_is_none_and_of_an_infinite_error_the_lowest():
    assert np.isnan(mean_sqnr([])) and np.isnan(mean_sqnr([0.1, np.nan]))
    assert mean_sqnr([0.1, np.inf]) == -np.inf


def test_rows_are_those_of_class_scores_alone(draw):
    x = draw(4, 5)
    assert compare((x, x), (x, -x)).rows == 8 and compare((x, x), (x, -x)).equal == 4
    assert compare((draw(4, 5, 2), draw(4, 5, 2))).rows == 0


def test_scores_that_are_some_of_the_time_are_none(draw):
    x, y = draw(4, 5), draw(4, 5, 2)
    assert compare((x, x), (y, y)).agreement is None and compare((y, y), (x, x)).agreement is None


def test_a_row_with_nan_or_infinity_has_no_best_class_and_minus_infinity_is_the_least_score():
    rows = [[0, 2, 1], [3, np.nan, 0], [np.inf, 0, 0], [np.nan] * 3, [-np.inf] * 3, [-np.inf, 1, 2], [1, 1, 1]]
    assert top_class(np.float32(rows)).tolist() == [1, -1, -1, -1, -1, 2, 0]
    assert top_class(np.zeros((0, 3))).tolist() == []
    like = np.float32([[-np.inf, 1, 2], [0, 1, 2]])
    assert top_class(np.float32([[-np.inf, 1, 2]] * 2), like=like).tolist() == [2, -1]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_row_that_is_not_finite_where_the_reference_is_does_not_agree(value):
    broken = compare(([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, value]]))
    assert (broken.agreement, broken.rows) == (0.5, 2)


def test_rows_without_a_best_class_in_the_reference_are_left_out_of_the_agreement():
    rows = [[0.0, 1.0], [np.nan, 0.0], [np.inf, 0.0], [-np.inf, 3.0]]
    found = compare((rows, [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0], [5.0, 3.0]]))
    assert (found.rows, found.equal, found.agreement) == (2, 1, 0.5)
    assert compare((rows[1:3], rows[1:3])).agreement is None


def test_embeddings_with_rows_of_nan_are_still_none(draw):
    rows = draw(5, 4)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[2] = np.nan
    assert compare((rows, rows)).agreement is None


@pytest.mark.parametrize(
    ("shape", "scores"),
    [((4, 3), True), ((4, 3, 1), True), ((4, 3, 1, 1), True), ((4, 1, 3), False), ((4, 3, 2), False), ((4, 1), False),
     ((4,), False), ((), False), ((1, 3), True)],
)  # fmt: skip
def test_scores_have_a_class_axis_and_nothing_behind_it(shape, scores):
    assert scores_classes(shape) == scores


def count(k, *batches):
    accuracy = Accuracy(k)
    for scores, other, labels in batches:
        accuracy.add(np.float32(scores), np.float32(other), np.array(labels))
    return accuracy.samples, accuracy.right, accuracy.other_right, accuracy.lost, accuracy.gained


ONE = [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.0, 0.2, 0.8], [0.5, 0.3, 0.2]]
OTHER = [[0.8, 0.2, 0.0], [0.9, 0.1, 0.0], [0.0, 0.1, 0.9], [0.3, 0.5, 0.2]]


def test_right_answers_are_counted_in_both_models_and_those_that_change_apart():
    assert count(1, (ONE, OTHER, [0, 1, 2, 1])) == (4, 3, 3, 1, 1)
    assert count(1, (ONE[:1], OTHER[:1], [0]), (ONE[1:], OTHER[1:], [1, 2, 0])) == (4, 4, 2, 2, 0)
    assert count(1, (OTHER, ONE, [0, 1, 2, 0])) == (4, 2, 4, 0, 2)
    assert count(1, (ONE, OTHER, [2, 2, 1, 2])) == (4, 0, 0, 0, 0)


def test_a_label_among_the_best_counts():
    assert count(2, (ONE, OTHER, [1, 0, 1, 2])) == (4, 3, 3, 0, 0)
    assert count(2, (ONE, OTHER, [2, 2, 0, 2])) == (4, 0, 0, 0, 0)
    assert count(5, (ONE, OTHER, [2, 2, 0, 2])) == (4, 4, 4, 0, 0)


@pytest.mark.parametrize("k", [1, 2])
def test_among_equals_the_first_are_the_best(k):
    assert count(k, ([[1, 1, 1]] * 3, [[1, 1, 1]] * 3, [0, 1, 2]))[1] == k
    many = np.tile([0, 1, 2], (k, 400))
    assert count(k, (many, many, [2, 5][:k]))[1] == k


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("k", [1, 2])
def test_a_row_without_a_best_class_is_never_right_in_either_model(k, value):
    odd, even = [[value, 1.0, 5.0]] * 3, [[0.0, 1.0, 5.0]] * 3
    assert count(k, (odd, even, [0, 1, 2]))[1:3] == (0, k)
    assert count(k, (even, odd, [0, 1, 2]))[1:3] == (k, 0)
    assert count(k, (odd, odd, [0, 1, 2]))[1:3] == (0, 0)


@pytest.mark.parametrize("k", [1, 2])
def test_minus_infinity_is_right_beside_another_model_that_has_it_too(k):
    odd, even = [[-np.inf, 1.0, 5.0]], [[0.0, 1.0, 5.0]]
    assert count(k, (odd, odd, [2]))[1:3] == (1, 1)
    assert count(k, (even, odd, [2]))[1:3] == (1, 0)


def test_nothing_counted_is_nothing_right():
    assert count(1, (np.zeros((0, 3)), np.zeros((0, 3)), [])) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("k", [1, 2])
def test_right_answers_are_counted_with_axes_of_one_behind(k):
    shaped = [np.reshape(x, (4, 3, 1, 1)) for x in (ONE, OTHER)]
    assert count(k, (*shaped, [0, 1, 2, 1])) == count(k, (ONE, OTHER, [0, 1, 2, 1]))


def test_the_median_is_not_moved_by_one_sample_that_has_most_of_the_energy():
    comparison, reference = Comparison(), np.ones((9, 4), np.float32)
    reference[3] = 1000
    comparison.add(reference[:4], reference[:4] * np.float32(1.001), 4)
    comparison.add(reference[4:], reference[4:] + 0.1, 5)
    assert comparison.sqnr_db == pytest.approx(60, abs=0.3) and comparison.median_db == pytest.approx(20, abs=0.1)
    assert comparison.largest_share == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(("other", "decibels"), [([1, 2], np.inf), ([np.nan, 2], -np.inf)])
def test_the_median_has_the_ends_of_the_ratio(other, decibels):
    found = compare(([1, 2], other))
    assert found.median_db == found.sqnr_db == decibels and found.largest_share == 1


def test_nothing_has_no_median():
    assert np.isnan(Comparison().median_db) and np.isnan(Comparison().largest_share)


def softmax(scores, axis):
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return (powers / powers.sum(axis=axis, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("shape", "axis"), [((3, 20, 7), 2), ((3, 5, 8, 8), 1), ((3, 4, 1), 1)])
def test_probabilities_have_a_top_class_at_each_position(draw, shape, axis):
    wanted = softmax(3 * draw(*shape), axis)
    given = wanted.copy()
    first = np.moveaxis(given, axis, -1)[0].reshape(-1, shape[axis])
    worst = np.zeros_like(first)
    worst[np.arange(len(first)), first.argmin(axis=1)] = 1
    np.moveaxis(given, axis, -1)[0] = worst.reshape(np.moveaxis(given, axis, -1)[0].shape)
    for values in ((wanted, given), (np.log(wanted), np.log(given + 1e-9))):
        comparison = Comparison()
        comparison.add(*values, samples=3)
        assert comparison.rows == wanted.size // shape[axis]
        assert comparison.agreement == pytest.approx(2 / 3) and comparison.groups == 3


def test_maps_of_other_values_have_no_classes(draw):
    values = [draw(3, 5, 8, 8), np.abs(draw(3, 5, 8, 8)), np.clip(draw(3, 5, 8, 8), 0, 1), -np.abs(draw(3, 20, 7))]
    assert [find_class_axis(value) for value in values] == [None] * 4


def test_padding_says_nothing_of_the_class_axis(draw):
    wanted = softmax(draw(2, 6, 5), 2)
    wanted[1, 3:] = -np.inf
    comparison = Comparison()
    comparison.add(wanted, wanted, samples=2)
    assert (comparison.rows, comparison.agreement) == (9, 1.0)


def test_batches_with_unlike_class_axes_have_no_agreement(draw):
    comparison = Comparison()
    comparison.add(softmax(draw(2, 6, 5), 2), softmax(draw(2, 6, 5), 2), samples=2)
    comparison.add(draw(2, 6, 5), draw(2, 6, 5), samples=2)
    assert comparison.agreement is None


def test_rows_may_be_known_not_to_be_scores(draw):
    comparison = Comparison(rows_are_scores=False)
    comparison.add(draw(8, 4), draw(8, 4), samples=8)
    assert comparison.agreement is None
    comparison = Comparison(rows_are_scores=False)
    wanted = softmax(draw(8, 4), 1)
    comparison.add(wanted, wanted, samples=8)
    assert comparison.agreement == 1
