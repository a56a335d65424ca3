"""Factors that move range from the channels of an activation into the weights of the layers that read it.

A channel that reaches many times as far as the others takes the levels of one grid for itself. SmoothQuant (Xiao et al.
2023, eq. 4) multiplies each channel j by ``f_j = max|w_j|^(1 - a) / max|x_j|^a``, and row j of the weight by its
inverse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A channel below this share of the largest counts as that share of it: one that is almost unused gets no huge factor.
LEAST_SHARE = 1e-5


def smoothing_factors(peaks: np.ndarray, rows: Sequence[np.ndarray], exponent: float) -> np.ndarray:
    """The factor of each channel, float32 (channels,), of geometric mean 1.

    peaks: the largest magnitude of each channel, (channels,). rows: for each layer that reads them, the largest
    magnitude of what multiplies the channel, (channels,). exponent: a, from 0 to 1, which makes all channels equal.
    """
    weight = _floor(np.max(rows, axis=0))
    logarithm = (1 - exponent) * np.log(weight) - exponent * np.log(_floor(peaks))
    found: np.ndarray = np.exp(logarithm - logarithm.mean()).astype(np.float32)
    return found


def _floor(values: np.ndarray) -> np.ndarray:
    most = float(values.max(initial=0.0))
    least: np.ndarray = np.maximum(values.astype(np.float64), LEAST_SHARE * most if most > 0 else 1.0)
    return least
