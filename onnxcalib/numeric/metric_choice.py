"""How far the output-aware metric of a layer is trusted: as far as it lowers the error of the outputs on other samples.

Where a model gives a few numbers, as a classifier does, few probes tell all that they depend on. Of a model that gives
many, each probe tells of one random sum of them: integers that are chosen by few fit these sums, and are worse for all
others, and for the layer's own output.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..spec import QuantSpec
from .gram import Moments
from .output_metric import OutputMetric
from .prior import Equations, Prior
from .solve import solve_layer

TRUSTS = (0.0, 0.25, 0.5, 1.0)
# By how much the error has to fall: less is chance on the held-out samples, while the error of the layer's own output
# rises with the trust. (In the later layers of a ViT-S that gives a map, a quarter changes it by -5% to +10%.)
LEAST_GAIN = 0.05
# At least so many output channels are solved to tell, evenly spread, or all where there are fewer than twice as many.
JUDGED = 64


def choose_trust(
    metrics: tuple[OutputMetric, OutputMetric], fitted: Moments, weight: torch.Tensor, spec: QuantSpec, prior: Prior
) -> float:
    """The trust in the first metric whose integers have the least error by the second one, of held-out samples.

    fitted: the moments of the samples of the first. weight: (1, C, K).
    """
    metric, held_out = metrics
    if not (metric.columns and held_out.columns):
        return metric.trust
    judged = slice(None, None, max(1, weight.shape[1] // JUDGED))
    weight = weight[:, judged].double()
    if not fitted.of_input:
        fitted = replace(fitted, cross=fitted.cross[:, judged], target_mean=fitted.target_mean[:, judged])
    optimum = weight + prior.trust * Equations.of(fitted, weight).solve(prior.ridge)
    errors = {}
    for trust in TRUSTS:
        found = solve_layer(fitted, weight, spec, prior=prior, output_metric=replace(metric, trust=trust))
        errors[trust] = held_out.measure(found.weights - optimum)
    best = min(TRUSTS, key=errors.__getitem__)
    return best if errors[best] <= (1 - LEAST_GAIN) * errors[0.0] else 0.0
