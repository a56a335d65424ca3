"""What integers add to the error of a layer, against errors of its outputs on the columns themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onnxcalib.numeric.gram import MomentSum
from onnxcalib.numeric.prior import Prior
from onnxcalib.numeric.solve import round_layer, solve_layer
from onnxcalib.spec import QuantSpec

FOUR = QuantSpec(4, signed=True, symmetric=True, axis=0)


def measure_error(targets, inputs, weight):
    """E|y - w x - b|^2 at the best bias, summed over the channels."""
    return float((targets - weight @ inputs).var(2, correction=0).sum())


@pytest.mark.parametrize("spec", [FOUR, replace(FOUR, bits=8), replace(FOUR, block=4), replace(FOUR, symmetric=False)])
@pytest.mark.parametrize("of_input", [False, True])
def test_they_are_the_differences_of_the_errors_of_the_outputs(spec, of_input, monkeypatch):
    monkeypatch.setattr("onnxcalib.numeric.added_errors.STRIP_BYTES", 300)  # parts of three channels
    rng = np.random.default_rng(0)
    groups = 1 if spec.block or not spec.symmetric else 2
    given = torch.from_numpy(rng.normal(size=(groups, 12, 12)) @ rng.normal(size=(groups, 12, 400)) + 1.0)
    weight = torch.from_numpy(rng.normal(size=(groups, 8, 12)))
    read, targets = (given / 0.3).round() * 0.3, weight @ given
    total = MomentSum()
    total.add(read, given if of_input else targets)
    solved = solve_layer(replace(total.centre(), of_input=of_input), weight, spec, prior=Prior(), with_added=True)
    before, power = measure_error(targets, read, weight), float((weight @ read).var(2, correction=0).sum())
    wanted = []
    for found in (round_layer(weight, spec), solved):
        scale, zero = (
            None if each is None else each.repeat_interleave(4, 2) if spec.block else each[..., None]
            for each in (found.scale, found.zero)
        )
        values = (found.integers - (0 if zero is None else zero)) * scale
        wanted.append((measure_error(targets, read, values) - before) / power)
    assert solved.added.shares() == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    assert wanted[1] < wanted[0]
    assert solved.added.take(slice(3)).rounded.shape == (groups, 3)


def test_a_layer_that_gives_constants_has_no_shares():
    total = MomentSum()
    total.add(torch.ones(1, 3, 50), torch.ones(1, 2, 50))
    found = solve_layer(total.centre(), torch.ones(1, 2, 3).double(), FOUR, prior=Prior(), with_added=True)
    assert found.added.shares() is None
