"""Per-channel statistics of a layer's output in two models, and the affine map from one to the other.

Para-normalization (Hubara et al. 2021, section 3.4) maps mean and deviation: ``W' = W gamma_r / sigma`` and
``b' = gamma_r / sigma (b - mu) + beta_r``. Both models see the same samples, so that the correlation r of the float
values y with the quantized values z is known too. Three gains are possible, measured on MobileNetV2 at W4A4:

    std(y) / std(z)            keeps deviations: agreement 36%
    r std(y) / std(z)          regression, the least squared error, shrinks noisy channels in every layer: 13%
    sqrt(r) std(y) / std(z)    lies between, and is used here: 46%

On ResNets all three are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# A channel whose variance is below this share of the largest variance has no gain that differs from noise.
DEAD = 1e-9
# Values of a channel whose evidence weighs as much as the prior that gain and mean need no change.
PRIOR_VALUES = 32
# Rounding changes a channel's deviation by less. A larger gain, or a smaller one than its inverse, fits few values.
MOST_GAIN = 4.0


@dataclass(frozen=True)
class Affine:
    """The map ``y = target + gain (z - centre)`` of each channel, three float64 arrays (C,)."""

    gain: np.ndarray
    centre: np.ndarray
    target: np.ndarray


class ChannelTally:
    """Sums of y, of z, of their squares and of their product, over all values of each channel."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: np.ndarray | None = None

    def add(self, reference: np.ndarray, other: np.ndarray, axis: int) -> None:
        """Take in one batch of y and of z, of the same shape, with channels on ``axis``."""
        y, z = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64) for x in (reference, other))
        products = (np.einsum("cn,cn->c", a, b) for a, b in ((y, y), (z, z), (y, z)))
        sums = np.stack([y.sum(1), z.sum(1), *products])
        self._sums = sums if self._sums is None else self._sums + sums
        self.count += y.shape[1]

    def fit(self, *, centred: bool = True) -> Affine:
        """The map from z to y; if not ``centred`` it maps zero to zero, for a layer that cannot have a bias.

        At least one batch has been added.
        """
        assert self._sums is not None
        mean_y, mean_z, *moments = self._sums / self.count
        means = (mean_y**2, mean_z**2, mean_y * mean_z) if centred else (0.0, 0.0, 0.0)
        of_y, of_z, of_both = (moment - mean for moment, mean in zip(moments, means, strict=True))
        alive = (of_z > DEAD * of_z.max(initial=0.0)) & (of_y > 0) & (of_both > 0)
        with np.errstate(all="ignore"):  # of channels that are not alive
            # sqrt(r) std(y) / std(z), with r = of_both / sqrt(of_y of_z)
            gain = np.where(alive, of_both**0.5 * of_y**0.25 / of_z**0.75, 1.0)
        weight = self.count / (self.count + PRIOR_VALUES)
        gain = 1 + weight * (np.clip(gain, 1 / MOST_GAIN, MOST_GAIN) - 1)
        if not centred:
            return Affine(gain, np.zeros_like(gain), np.zeros_like(gain))
        return Affine(gain, mean_z, mean_z + weight * (mean_y - mean_z))
