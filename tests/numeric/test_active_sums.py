import numpy as np
import pytest
import torch

from onnxcalib.numeric.active_sums import ASIDE, MARGIN, ActiveSum
from onnxcalib.numeric.gram import Unit

END = 1.5


def draw(groups, channels, inputs, columns=400):
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(groups, inputs, columns, generator=generator)
    return x, torch.randn(groups, channels, columns, generator=generator) + x[:, :1]


def measure(x, y, channel):
    """Weighted covariances and means of one channel of one group, by NumPy."""
    inside = (y[channel] > -MARGIN * END) & (y[channel] < (1 + MARGIN) * END)
    weights = np.where(inside, 1.0, ASIDE)
    means = np.average(x, axis=1, weights=weights)
    goal = np.average(y[channel], weights=weights)
    apart = x - means[:, None]
    gram = (weights * apart) @ apart.T / weights.sum()
    return gram, apart @ (weights * (y[channel] - goal)) / weights.sum(), means, goal


@pytest.mark.parametrize(("groups", "channels"), [(3, 1), (1, 4)])
def test_each_channel_has_the_moments_of_its_weighted_columns(groups, channels):
    x, y = draw(groups, channels, 5)
    total = ActiveSum(END)
    for part in (slice(0, 150), slice(150, 150), slice(150, 400)):
        total.add(x[..., part], y[..., part])
    found = total.centre()
    assert found.columns == 400 and found.gram.shape == (groups * channels, 5, 5)
    for number in range(groups * channels):
        group, channel = divmod(number, channels)
        gram, cross, means, goal = measure(x[group].double().numpy(), y[group].double().numpy(), channel)
        np.testing.assert_allclose(found.gram[number], gram, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.cross[number, 0], cross, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.input_mean[number], means, rtol=1e-5)
        np.testing.assert_allclose(found.target_mean[number], [goal], rtol=1e-5)


@pytest.mark.parametrize(("groups", "channels"), [(3, 1), (1, 4)])
def test_sums_are_merged_whatever_was_subtracted_from_each(groups, channels):
    x, y = draw(groups, channels, 5)
    whole, total = ActiveSum(END), ActiveSum(END)
    whole.add(x, y)
    for part in (slice(0, 0), slice(0, 3), slice(3, 400)):
        share = ActiveSum(END)
        share.add(x[..., part], y[..., part])
        total.merge(share)
    for wanted, given in zip(vars(whole.centre()).values(), vars(total.centre()).values(), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)


def test_integers_stand_for_their_values():
    x, y = draw(1, 2, 5)
    unit, integers = Unit(0.25, -3), (4 * x).round().to(torch.int8)
    plain, stored = ActiveSum(END), ActiveSum(END, unit)
    plain.add(0.25 * (integers.float() + 3), y)
    stored.add(integers, y)
    torch.testing.assert_close(stored.centre().gram, plain.centre().gram)
