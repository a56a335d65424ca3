"""The prior of a layer's real-valued optimum: held-out samples choose how far it keeps to the float weight."""

import gc
import weakref

import numpy as np
import pytest
import torch

from onnxcalib.numeric.gram import MomentSum
from onnxcalib.numeric.prior import RIDGES, Equations, choose_prior


def moments_of(inputs, targets):
    total = MomentSum()
    total.add(inputs, targets)
    return total.centre()


def draw_problem(seed, *, channels=4, size=12, columns=300):
    """Correlated inputs (1, K, P) with means, and a weight (1, C, K)."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(1, size, size)) @ rng.normal(size=(1, size, columns))
    inputs += rng.normal(size=(1, size, 1))
    return torch.from_numpy(inputs), torch.from_numpy(rng.normal(size=(1, channels, size)))


def draw_noisy(columns, generator, unit=1.0):
    """Inputs that lost much to quantization, and the float model's outputs."""
    weight = torch.randn(1, 4, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.randn(1, 24, columns, generator=generator, dtype=torch.float64)
    noise = torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
    return moments_of(unit * (inputs + 0.5 * noise), unit * weight @ inputs), weight


def test_few_noisy_samples_choose_a_larger_ridge_than_many():
    generator = torch.Generator().manual_seed(1)
    held_out, weight = draw_noisy(2000, generator)
    few, many = (choose_prior(draw_noisy(n, generator)[0], held_out, weight).ridge for n in (30, 20000))
    assert {few, many} <= set(RIDGES) and few >= 0.3 and many <= 0.03


@pytest.mark.parametrize(("share", "trust"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0), (-1.0, 0.0)])
def test_a_change_is_trusted_as_far_as_it_holds_on_held_out_samples(share, trust):
    inputs, weight = draw_problem(13, size=8)
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted = moments_of(inputs, (weight + change) @ inputs)
    held_out = moments_of(inputs, (weight + share * change) @ inputs)
    assert abs(choose_prior(fitted, held_out, weight).trust - trust) < 0.02


def judge_all(fitted, held_out, weight):
    """The least error on held-out moments of each ridge, with its best trust of 101."""
    found = {}
    for ridge in RIDGES:
        change = Equations.of(fitted, weight).solve(ridge).double()
        for trust in np.linspace(0, 1, 101):
            weights = weight + trust * change
            error = ((weights @ held_out.gram - 2 * held_out.cross) * weights).sum()
            found[ridge] = min(found.get(ridge, np.inf), float(error))
    return found


@pytest.mark.parametrize("columns", [40, 150, 4000])
@pytest.mark.parametrize("unit", [1.0, 1e-15, 1e25])
def test_the_ridge_is_that_of_least_error_on_held_out_samples_in_any_units(columns, unit):
    generator = torch.Generator().manual_seed(3)
    fitted, _ = draw_noisy(columns, generator, unit)
    held_out, weight = draw_noisy(2000, generator, unit)
    errors = judge_all(fitted, held_out, weight)
    assert choose_prior(fitted, held_out, weight).ridge == min(errors, key=errors.get)


def test_choosing_leaves_the_moments_as_they_are():
    inputs, weight = draw_problem(12)
    moments = moments_of(inputs, weight @ inputs)
    before = moments.gram.clone(), moments.cross.clone()
    choose_prior(moments, moments, weight)
    assert torch.equal(moments.gram, before[0]) and torch.equal(moments.cross, before[1])


def test_what_a_prior_is_chosen_on_is_freed_at_once(monkeypatch):
    """Not by the next collection of garbage, before which many layers may pass."""
    made, make = [], Equations.of

    def keep(*given):
        found = make(*given)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(Equations, "of", keep)
    inputs, weight = draw_problem(3)
    moments = moments_of(inputs, weight @ inputs)
    gc.disable()
    try:
        choose_prior(moments, moments, weight)
        assert len(made) == 2 and not any(each() for each in made)
    finally:
        gc.enable()


def test_inputs_that_never_vary_choose_a_prior_all_the_same():
    inputs, weight = torch.full((1, 5, 30), 3.0), torch.ones(1, 2, 5)
    moments = moments_of(inputs, weight @ inputs)
    assert choose_prior(moments, moments, weight).ridge in RIDGES


def test_a_prior_is_judged_by_every_channel():
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(1, 6, 400, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 700, 6, generator=generator, dtype=torch.float64)
    change = torch.zeros_like(weight)
    change[0, 333] = 5.0  # the quantized prefix changes one channel alone; of the others the fitted samples say wrong
    wrong = 0.01 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    fitted, held_out = (moments_of(inputs, (weight + change + each) @ inputs) for each in (wrong, -wrong))
    assert choose_prior(fitted, held_out, weight).trust > 0.9
