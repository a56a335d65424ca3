"""The metric in which a layer's integers are chosen, by what they give on other samples.

Integers of a layer with many inputs fit the samples that its Gram matrix is from: they hide their error where these
hardly reach. A ridge keeps them from that, as Ledoit and Wolf (2004) shrink a covariance towards a multiple of the
identity.

How far the output-aware metric is trusted: as far as it lowers the error of the outputs. Where a model gives a few
numbers, as a classifier does, few probes tell all that they depend on. Of a model that gives many, each probe tells of
one random sum of them: integers that are chosen by few fit these sums, and are worse for all others, and for the
layer's own output.
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
# rises with the trust, and that on the samples that are fitted with a ridge. (In the later layers of a ViT-S that gives
# a map, a quarter of the trust changes it by -5% to +10%.)
LEAST_GAIN = 0.05
# Ridges of the metric, in units of the mean input variance, beside that of the prior.
DAMPINGS = (0.3, 1.0, 3.0)
# Layers of fewer inputs are not tried with these: networks had none that gained by a ridge.
FEWEST_INPUTS = 256
# At least so many output channels are solved to tell, evenly spread, or all where there are fewer than twice as many.
JUDGED = 64


def choose_damping(fitted: Moments, held_out: Moments, weight: torch.Tensor, spec: QuantSpec, prior: Prior) -> float:
    """The ridge of the metric whose integers, found on ``fitted``, add the least squared error on ``held_out``.

    weight: (G, C, K). 0, for the prior's own, where that is not LEAST_GAIN worse. Ridges are tried as long as each is
    better than the last.
    """
    if weight.shape[2] < FEWEST_INPUTS:
        return 0.0
    groups, channels = weight.shape[:2]
    step = max(1, groups * channels // JUDGED)
    parts = (slice(None), slice(None, None, step)) if groups == 1 else (slice(None, None, step), slice(None))
    fitted, weight = _take(fitted, *parts), weight[parts].double()
    optimum, gram = weight + prior.trust * Equations.of(fitted, weight).solve(prior.ridge), held_out.gram[parts[0]]

    def measure(damping: float) -> float:
        change = solve_layer(fitted, weight, spec, prior=prior, damping=damping).weights - optimum
        return float(((change @ gram) * change).sum())

    best, least = 0.0, (1 - LEAST_GAIN) * (error := measure(0.0))
    for damping in DAMPINGS:
        if not (found := measure(damping)) < error:
            break
        if found <= least:
            best = damping
        error = found
    return best


def _take(moments: Moments, groups: slice, channels: slice) -> Moments:
    """The moments of some groups and some of their channels."""
    cross, target_mean = moments.cross[groups], moments.target_mean[groups]
    if not moments.of_input:
        cross, target_mean = cross[:, channels], target_mean[:, channels]
    gram, input_mean = moments.gram[groups], moments.input_mean[groups]
    return replace(moments, gram=gram, cross=cross, input_mean=input_mean, target_mean=target_mean)


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
