import numpy as np
import pytest

from onnxcalib.numeric import mixing
from onnxcalib.numeric.mixing import find_mixing, rounding_ratio
from onnxcalib.numeric.rotation import turn

SIZE = 7


@pytest.fixture
def pair():
    """A covariance and a metric: what varies least counts most."""
    variances = np.geomspace(1, 100, SIZE)
    generator = np.random.default_rng(0)
    axes, others = (np.linalg.qr(generator.standard_normal((SIZE, SIZE)))[0] for _ in range(2))
    return axes.T @ np.diag(variances) @ axes, others.T @ np.diag(1 / variances) @ others


def cost(matrix, covariance, metric):
    inverse = np.linalg.inv(matrix)
    return np.diag(matrix @ covariance @ matrix.T) @ np.diag(inverse.T @ metric @ inverse)


def test_the_channels_vary_alike_and_no_other_matrix_costs_less(pair, monkeypatch):
    monkeypatch.setattr(mixing, "RIDGE", 0.0)
    found = find_mixing(*pair)
    variances = np.diag(found @ pair[0] @ found.T)
    np.testing.assert_allclose(variances, variances.mean(), rtol=1e-2)
    singular = np.sqrt(np.linalg.eigvals(pair[0] @ pair[1]).real)
    assert cost(found, *pair) == pytest.approx(singular.sum() ** 2 / SIZE, rel=1e-2)
    others = [np.eye(SIZE), turn(SIZE), np.diag(np.diag(pair[0]) ** -0.5), found @ np.diag(np.linspace(0.5, 1.5, SIZE))]
    assert all(cost(other, *pair) > 1.01 * cost(found, *pair) for other in others)


def test_rounding_to_few_levels_costs_less(pair):
    columns = np.linalg.cholesky(pair[0]) @ np.random.default_rng(0).standard_normal((SIZE, 2000))
    found = find_mixing(*pair)
    inverse = np.linalg.inv(found)
    before, after = (
        rounding_ratio(values, metric, 16)
        for values, metric in ((columns, pair[1]), (found @ columns, inverse.T @ pair[1] @ inverse))
    )
    assert after < 0.8 * before
    assert rounding_ratio(columns, pair[1], 256) < before / 50


@pytest.mark.parametrize("which", [0, 1])
def test_channels_that_never_vary_or_that_nothing_reads_are_mixed_by_a_matrix_with_an_inverse(pair, which):
    pair[which][2] = pair[which][:, 2] = 0
    found = find_mixing(*pair)
    assert np.isfinite(found).all() and np.linalg.cond(found) < 1e3


def test_what_does_not_vary_has_no_error():
    assert rounding_ratio(np.zeros((SIZE, 5)), np.eye(SIZE), 16) == 0
