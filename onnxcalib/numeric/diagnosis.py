"""What the values of a tensor show about the grid that they are quantized on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The bulk of a tensor lies between these quantiles.
BULK = (0.001, 0.999)


@dataclass(frozen=True)
class Symptoms:
    """Measures of one tensor on its grid.

    spread: width of the grid over the width of the bulk, infinite where the bulk is one value; clipped: share of the
    values outside the grid; unlike: largest absolute value of any channel over the median of the channels' largest,
    dead ones left out; dead: share of the channels that are all zero; sqnr_db: of the quantized tensor, in dB.
    """

    spread: float
    clipped: float
    unlike: float
    dead: float
    sqnr_db: float


def diagnose(values: np.ndarray, scale: float, low: float, high: float, axis: int) -> Symptoms:
    """Symptoms of values with channels on ``axis``, on the grid that has a level every ``scale`` from low to high."""
    values = np.moveaxis(np.asarray(values, np.float32), axis, 0).reshape(values.shape[axis], -1)
    bulk = np.quantile(values, BULK)
    width = float(bulk[1] - bulk[0])
    ranges = np.abs(values).max(axis=1)
    alive = ranges[ranges > 0]
    error = np.clip(np.round(values / np.float32(scale)) * np.float32(scale), low, high) - values
    noise, power = float(np.square(error).sum(dtype=np.float64)), float(np.square(values).sum(dtype=np.float64))
    margin = scale / 2
    return Symptoms(
        spread=(high - low) / width if width else float("inf"),
        clipped=float(((values < low - margin) | (values > high + margin)).mean()),
        unlike=float(alive.max() / np.median(alive)) if alive.size else 1.0,
        dead=float((ranges == 0).mean()),
        sqnr_db=_decibel(power, noise),
    )


def channel_gains(reference: np.ndarray, other: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Gain of each channel of ``other`` over the reference's, and their correlation, (channels,) each.

    The gain g is that of least ``|other - g reference|^2`` about the means; both are 0 where a channel does not vary.
    """
    a, b = (np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1).astype(np.float64) for x in (reference, other))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    product, power, other_power = (np.einsum("ij,ij->i", x, y) for x, y in ((a, b), (a, a), (b, b)))
    varies = (power > 0) & (other_power > 0)
    gains = np.divide(product, power, out=np.zeros(len(a)), where=varies)
    return gains, np.divide(product, np.sqrt(power * other_power), out=np.zeros(len(a)), where=varies)


def rounding_sqnr(integers: np.ndarray, scale: np.ndarray, axis: int) -> float:
    """SQNR in dB of a weight that was rounded to its grid, for an error of variance scale^2 / 12 (uniform rounding).

    scale: one, one for each channel on ``axis``, or of a shape that broadcasts against ``integers``.
    """
    if scale.ndim == 1:
        scale = scale.reshape([-1 if i == axis % integers.ndim else 1 for i in range(integers.ndim)])
    squares = np.square(np.broadcast_to(scale, integers.shape).astype(np.float64))
    return _decibel(float((squares * np.square(integers.astype(np.float64))).sum()), float(squares.sum() / 12))


def _decibel(power: float, noise: float) -> float:
    return float("inf") if noise == 0 else 10 * float(np.log10(max(power, np.finfo(np.float64).tiny) / noise))
