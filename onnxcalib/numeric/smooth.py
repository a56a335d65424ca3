"""Factors that move range from the channels of an activation into the weights of the layers that read it.

And the integers of these layers, roughly as they are solved, by which such factors are judged.

A channel that reaches many times as far as the others takes the levels of one grid for itself. SmoothQuant (Xiao et al.
2023, eq. 4) multiplies each channel j by ``f_j = max|w_j|^(1 - a) / max|x_j|^a``, and row j of the weight by its
inverse. Where each row of the activation has a range of its own, ``fit_factors`` improves these by what rounding costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from ..spec import QuantSpec
from .adam import Adam
from .integer_search import Metric, gptq, order_inputs
from .rounding import fake_quantize, quantize

# A channel below this share of the largest counts as that share of it: one that is almost unused gets no huge factor.
LEAST_SHARE = 1e-5
# Scales that are tried with fewer than 8 bits, as shares of the one at which none of a row's weights is clipped.
SHARES = (1.0, 0.85, 0.7, 0.55)
# Ridge of the Gram matrix, in units of the mean input power: what some hundred samples say of weak inputs is noise.
RIDGE = 0.1
SMALLEST = float(np.finfo(np.float32).tiny)
# Steps of Adam on the logarithms of factors, and its first rate, which falls to zero. (SmolLM2-135M: in 60 steps the
# error falls to a half of that of the exponent 0.65, and little is left to gain.)
FIT_STEPS, FIT_RATE = 60, 0.05
# Rows of an activation, and channels of a weight, that stand for all when factors are fitted.
FIT_ROWS, FIT_CHANNELS = 512, 2048


def smoothing_factors(peaks: np.ndarray, rows: Sequence[np.ndarray], exponent: float) -> np.ndarray:
    """The factor of each channel, float32 (channels,), of geometric mean 1.

    peaks: the largest magnitude of each channel, (channels,). rows: for each layer that reads them, the largest
    magnitude of what multiplies the channel, (channels,). exponent: a, from 0 to 1, which makes all channels equal.
    """
    weight = _floor(np.max(rows, axis=0))
    logarithm = (1 - exponent) * np.log(weight) - exponent * np.log(_floor(peaks))
    found: np.ndarray = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return found


def reaching_factors(peaks: np.ndarray, reach: float) -> np.ndarray:
    """The factors, float32 (channels,), with which no channel reaches over ``reach`` times as far as the median one.

    All others keep 1, so that few-bit weights take no more range than the few channels need that stick out.
    """
    found: np.ndarray = np.minimum(1.0, reach * np.median(_floor(peaks)) / _floor(peaks)).astype(np.float32)
    return found


class Steps(NamedTuple):
    """How many neighbours share a step in rows of an activation, and in columns of a weight; None: all of them do."""

    inputs: int | None = None
    weights: int | None = None


WHOLE_ROWS = Steps()


def fit_factors(
    values: np.ndarray, weights: Sequence[np.ndarray], start: np.ndarray, steps: Steps = WHOLE_ROWS
) -> np.ndarray:
    """The factors near ``start``, float32 (channels,), with which 8 bits cost layers least that round rows alone.

    Steps of D leave errors of D^2 / 12. A row x of the activation has the step ``p / 127`` of its peak
    ``p = max_j |x_j f_j|``, and channel i of the weight that of its largest ``|w_ij| / f_j``, so that the outputs miss

        p^2 sum_ij (w_ij / f_j)^2 + sum_i max_j (w_ij / f_j)^2 sum_j (x_j f_j)^2

    up to a constant; where blocks of channels have steps of their own, the sum over blocks. The mean over rows, each
    relative to the squares of its own outputs, is summed over the layers, and minimized by Adam: no row counts for more
    because it is large, as the first token of language models is.

    values (rows, channels): of the activation. weights (channels, outputs): of each layer.
    """
    x = torch.from_numpy(np.ascontiguousarray(values[:: -(-len(values) // FIT_ROWS) or 1], np.float32))
    layers = [_Layer.of(x, torch.from_numpy(np.ascontiguousarray(each.T, np.float32))) for each in weights]
    logarithm = torch.from_numpy(start.astype(np.float32)).log().requires_grad_()
    adam = Adam([([logarithm], FIT_RATE)])
    for left in range(FIT_STEPS, 0, -1):
        with torch.enable_grad():
            factor = logarithm.exp()
            scaled = x * factor
            peaks = _part(scaled.abs(), steps.inputs).amax(2).square()
            powers = _part(scaled.square(), steps.weights).sum(2)
            loss = torch.stack([layer.lose(factor, peaks, powers, steps) for layer in layers]).sum().log()
            adam.step(loss)
        adam.scale_rates(1 - 1 / left)
    found = logarithm.detach()
    fitted: np.ndarray = (found - found.mean()).exp().numpy()
    return fitted if np.isfinite(fitted).all() else start


class _Layer(NamedTuple):
    """A layer that reads rows: the squares of its weight by input, (K,), and the magnitudes of some channels, (C, K).

    share: all channels for each of these. relative: for each row one by the squares of its outputs.
    """

    squares: torch.Tensor
    magnitudes: torch.Tensor
    share: float
    relative: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, weight: torch.Tensor) -> _Layer:
        """weight (channels, inputs)."""
        some = weight[:: -(-len(weight) // FIT_CHANNELS) or 1].abs()
        given = (x @ weight.T).square().sum(1).clamp_min(SMALLEST)
        return cls(weight.square().sum(0), some, len(weight) / max(len(some), 1), given.reciprocal())

    def lose(self, factor: torch.Tensor, peaks: torch.Tensor, powers: torch.Tensor, steps: Steps) -> torch.Tensor:
        """What rounding costs at these factors (K,); peaks and powers (rows, blocks): of the rows that have them."""
        by_inputs = peaks @ _part(self.squares / factor.square(), steps.inputs).sum(1)
        largest = _part(self.magnitudes / factor, steps.weights).amax(2).square().sum(0)
        return ((by_inputs + self.share * (powers @ largest)) * self.relative).mean()


def _part(rows: torch.Tensor, size: int | None) -> torch.Tensor:
    """The last axis as (blocks, size), of which one block has all for None."""
    parted: torch.Tensor = rows.unflatten(-1, (-1, size or rows.shape[-1]))
    return parted


def round_in_blocks(weight: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """A weight (channels, inputs) on the grids of its blocks, at which none of it is clipped."""
    parts = _part(torch.from_numpy(np.ascontiguousarray(weight, np.float32)), spec.block)
    if spec.symmetric:
        scale, zero = parts.abs().amax(2, keepdim=True) / spec.qmax, torch.zeros(())
    else:
        low, high = parts.amin(2, keepdim=True).clamp_max(0), parts.amax(2, keepdim=True).clamp_min(0)
        scale = (high - low) / (spec.qmax - spec.qmin)
        zero = torch.round(low / scale.clamp_min(SMALLEST)) - spec.qmin
    scale = scale.clamp_min(SMALLEST)
    rounded: torch.Tensor = (torch.round(parts / scale) - zero).clamp_(spec.qmin, spec.qmax).add_(zero).mul_(scale)
    return rounded.flatten(1).numpy()


def round_weight(weight: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray]:
    """Integers of a weight (channels, inputs), and the scale of each channel, at which none is clipped."""
    scale = np.maximum(np.abs(weight).max(axis=1), SMALLEST) / spec.qmax
    return quantize(weight, scale[:, None], 0, spec), scale


def solve_weight(weight: np.ndarray, gram: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray]:
    """Integers of a weight (channels, inputs), and the scale of each channel, by GPTQ on the inputs' Gram matrix.

    At one scale: with 8 bits that at which none is clipped, with fewer that of SHARES at which rounding to nearest
    leaves least. gram: (inputs, inputs).
    """
    spec = replace(spec, pair_limit=None)  # of which a trial has no need
    metric = torch.from_numpy(gram.astype(np.float32))[None]
    power = metric.diagonal(dim1=1, dim2=2).mean().clamp_min(SMALLEST)
    metric.diagonal(dim1=1, dim2=2).add_(RIDGE * power)
    order = order_inputs(metric)[0]
    rows = torch.from_numpy(np.ascontiguousarray(weight, np.float32))[:, order]
    metric = metric[:, order][:, :, order]
    found = Metric.of(metric)
    weights = found.upper.diagonal(dim1=1, dim2=2)[0].square()
    largest = rows.abs().amax(1).clamp_min(SMALLEST * spec.qmax) / spec.qmax
    shares = torch.tensor(SHARES if spec.bits < 8 else SHARES[:1])
    errors = (fake_quantize(rows, share * largest[:, None], 0, spec) - rows for share in shares)
    scale = shares[torch.stack([error.square() @ weights for error in errors]).argmin(0)] * largest
    integers, _ = gptq(found, rows[None], scale[None], spec)
    return integers[0][:, order.argsort()].numpy(), scale.numpy()


def _floor(values: np.ndarray) -> np.ndarray:
    most = float(values.max(initial=0.0))
    least: np.ndarray = np.maximum(values.astype(np.float64), LEAST_SHARE * most if most > 0 else 1.0)
    return least


def climb(count: int, first: int, measure: Callable[[int], float]) -> int:
    """The best of the numbers below ``count`` that are met from the first one on to each side, as long as they gain.

    Both sides are looked at: in SmolLM2-135M the exponents 0.8 and 0.95 are alike, and 0.65 and 0.5 have 6 dB more.
    """
    best = first
    for step in (1, -1):
        at = first
        while 0 <= at + step < count and measure(at + step) > measure(at):
            at += step
        best = max(best, at, key=measure)
    return best
