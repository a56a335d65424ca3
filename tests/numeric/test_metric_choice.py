"""Metrics of models that give a few numbers, and of models that give a map, of which few probes tell little."""

from __future__ import annotations

import pytest
import torch

from onnxcalib.numeric.gram import Moments
from onnxcalib.numeric.metric_choice import choose_damping, choose_trust
from onnxcalib.numeric.output_metric import OutputMetric
from onnxcalib.numeric.prior import Prior
from onnxcalib.spec import QuantSpec

INPUTS, INPUTS_OF_MANY, FOUR = 24, 256, QuantSpec(4, True, True, axis=0)


def draw(rows, columns, seed):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("directions", "columns", "trusted"), [(4, 400, True), (INPUTS, 16, False), (4, 0, True)])
def test_a_metric_is_trusted_where_it_tells_of_other_samples(directions, columns, trusted):
    spread = draw(INPUTS, directions, 0) if directions < INPUTS else torch.eye(INPUTS, dtype=torch.float64)
    seen, other = spread @ draw(directions, columns, 1), spread @ draw(directions, 4000, 2)
    metrics = OutputMetric((seen @ seen.T)[None], columns), OutputMetric((other @ other.T)[None], 4000)
    weight, gram, zeros = draw(16, INPUTS, 3)[None], torch.eye(INPUTS, dtype=torch.float64)[None], torch.zeros(1, 24)
    moments = Moments(gram, weight.clone(), zeros.double(), torch.zeros(1, 16).double(), 1000)
    found = choose_trust(metrics, moments, weight, FOUR, Prior())
    assert found == (1.0 if trusted else 0.0)


def measure(weight, columns, seed):
    inputs = draw(INPUTS_OF_MANY, columns, seed)
    gram = (inputs @ inputs.T / columns)[None]
    zeros = torch.zeros(1, INPUTS_OF_MANY).double(), torch.zeros(1, weight.shape[1]).double()
    return Moments(gram, weight @ gram, *zeros, columns)


@pytest.mark.parametrize(("columns", "damped"), [(384, True), (6000, False)])
def test_integers_are_damped_where_the_samples_are_few(columns, damped):
    weight = draw(6, INPUTS_OF_MANY, 0)[None]
    fitted, held_out = (measure(weight, count, seed) for seed, count in enumerate((columns, 3000), 1))
    assert (choose_damping(fitted, held_out, weight, FOUR, Prior(0.003)) > 0) == damped


def test_layers_of_few_inputs_are_not_damped():
    fitted = Moments(*(torch.full((), float("nan")),) * 4, 1)
    assert choose_damping(fitted, fitted, draw(16, 9, 0)[None], FOUR, Prior()) == 0.0
