import numpy as np
import pytest
import torch

from onnxcalib.numeric.active_sums import ASIDE, MARGIN, ActiveColumns, ActiveSum
from onnxcalib.numeric.gram import Unit

END = 1.5
# Of both kinds: the groups and the channels of a layer, and what sums its columns.
KINDS = [(3, 1, ActiveSum), (1, 4, ActiveColumns)]


def draw(groups, channels, inputs, columns=400):
    generator = torch.Generator().manual_seed(0)
    x = 1 + torch.randn(groups, inputs, columns, generator=generator)
    # One channel is active nearly everywhere, others are in fewer columns than half of them.
    reach = torch.linspace(0.5, 8, groups * channels).reshape(groups, channels, 1)
    return x, reach * torch.randn(groups, channels, columns, generator=generator) + x[:, :1]


def measure(x, y, channel):
    """Weighted covariances and means of one channel of one group, by NumPy."""
    inside = (y[channel] > -MARGIN * END) & (y[channel] < (1 + MARGIN) * END)
    weights = np.where(inside, 1.0, ASIDE)
    means = np.average(x, axis=1, weights=weights)
    goal = np.average(y[channel], weights=weights)
    apart = x - means[:, None]
    gram = (weights * apart) @ apart.T / weights.sum()
    return gram, apart @ (weights * (y[channel] - goal)) / weights.sum(), means, goal


@pytest.mark.parametrize(("groups", "channels", "kind"), KINDS)
def test_each_channel_has_the_moments_of_its_weighted_columns(groups, channels, kind):
    x, y = draw(groups, channels, 5)
    total = kind(END)
    for part in (slice(0, 150), slice(150, 150), slice(150, 400)):
        total.add(x[..., part], y[..., part])
    found, last = total.centre(), total.centre(slice(groups * channels - 1, None))
    assert found.columns == 400 and found.gram.shape == (groups * channels, 5, 5)
    torch.testing.assert_close(last.gram[0], found.gram[-1])
    torch.testing.assert_close(last.target_mean[0], found.target_mean[-1])
    for number in range(groups * channels):
        group, channel = divmod(number, channels)
        gram, cross, means, goal = measure(x[group].double().numpy(), y[group].double().numpy(), channel)
        np.testing.assert_allclose(found.gram[number], gram, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.cross[number, 0], cross, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.input_mean[number], means, rtol=1e-5)
        np.testing.assert_allclose(found.target_mean[number], [goal], rtol=1e-5)


@pytest.mark.parametrize(("groups", "channels", "kind"), KINDS)
def test_sums_are_merged_whatever_was_subtracted_from_each(groups, channels, kind):
    x, y = draw(groups, channels, 5)
    whole, total = kind(END), kind(END)
    whole.add(x, y)
    for part in (slice(0, 0), slice(0, 3), slice(3, 400)):
        share = kind(END)
        share.add(x[..., part], y[..., part])
        total.merge(share)
    for wanted, given in zip(vars(whole.centre()).values(), vars(total.centre()).values(), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("groups", "channels", "kind"), KINDS)
def test_what_is_not_finite_is_seen(groups, channels, kind):
    for number in range(2):
        values = draw(groups, channels, 5)
        total = kind(END)
        values[number][0, -1, 7] = np.inf
        total.add(*values)
        assert not total.seen_finite()


def test_integers_stand_for_their_values():
    x, y = draw(1, 2, 5)
    unit, integers = Unit(0.25, -3), (4 * x).round().to(torch.int8)
    plain, stored = ActiveColumns(END), ActiveColumns(END, unit)
    plain.add(0.25 * (integers.float() + 3), y)
    stored.add(integers, y)
    torch.testing.assert_close(stored.centre().gram, plain.centre().gram)
