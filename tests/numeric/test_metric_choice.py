"""Metrics of models that give a few numbers, and of models that give a map, of which few probes tell little."""

from __future__ import annotations

import pytest
import torch

from onnxcalib.numeric.gram import Moments
from onnxcalib.numeric.metric_choice import choose_trust
from onnxcalib.numeric.output_metric import OutputMetric
from onnxcalib.numeric.prior import Prior
from onnxcalib.spec import QuantSpec

INPUTS, FOUR = 24, QuantSpec(4, True, True, axis=0)


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
