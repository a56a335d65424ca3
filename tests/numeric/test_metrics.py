import numpy as np
import pytest

from onnxcalib.numeric.metrics import Comparison


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


def test_nothing_compared_has_no_agreement():
    assert Comparison().agreement is None
