import pytest
import torch

from onnxcalib.numeric import channel_solve
from onnxcalib.numeric.active_sums import ActiveColumns
from onnxcalib.numeric.channel_solve import solve_channels
from onnxcalib.spec import QuantSpec

SPEC = QuantSpec(4, signed=True, symmetric=True, axis=0)


def read_columns(infinite=False):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 6, 5, generator=generator)
    sums = [ActiveColumns(6.0), ActiveColumns(6.0)]
    for total, columns in zip(sums, (400, 100), strict=True):
        x = torch.randn(1, 5, columns, generator=generator)
        total.add(x * (1e30 if infinite else 1), weight @ x)
    return sums, weight


def test_few_channels_at_a_time_have_the_solution_that_all_have(monkeypatch):
    sums, weight = read_columns()
    (whole,) = solve_channels(sums, weight, [SPEC], widths=[2], with_added=True)
    monkeypatch.setattr(channel_solve, "VALUES_AT_ONCE", 2 * 5 * 5)
    (parts,) = solve_channels(sums, weight, [SPEC], widths=[2], with_added=True)
    assert parts.integers.shape == (1, 6, 5) and parts.bias.shape == parts.scale.shape == (1, 6)
    torch.testing.assert_close(parts.added.power, whole.added.power)
    for found in (parts, whole):  # the target is what the float weight gives
        assert (found.weights - weight).square().mean() < 0.01 * weight.square().mean()


@pytest.mark.parametrize("sums", [read_columns(infinite=True)[0], []])
def test_nothing_is_solved_where_products_overflow_or_there_is_no_column(sums):
    assert solve_channels(sums, torch.ones(1, 6, 5), [SPEC], widths=[1]) is None
