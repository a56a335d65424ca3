"""The one definition of rounding to an integer grid, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

from ..spec import QuantSpec

# Values, and a scale or zero point that is not a number, are all arrays or all tensors.
Values = TypeVar("Values", np.ndarray, torch.Tensor)


def quantize(x: Values, scale: Values | float, zero_point: Values | float, spec: QuantSpec) -> Values:
    """Integers ``clip(round_half_even(x / scale) + zero_point, qmin, qmax)``, in x's own float type.

    The division is not replaced by a product with 1 / scale: only with it every value agrees with onnxruntime's
    QuantizeLinear. ``scale`` and ``zero_point`` broadcast against ``x``.
    """
    # NumPy's and torch's ``round`` both take halves to even.
    return ((x / scale).round() + zero_point).clip(spec.qmin, spec.qmax)


def next_power(x: np.ndarray) -> np.ndarray:
    """The least power of two that is not below x, which is positive; exact."""
    fraction, exponent = np.frexp(x)
    power: np.ndarray = np.ldexp(1.0, exponent - (fraction == 0.5))
    return power


def dequantize(integers: Values, scale: Values | float, zero_point: Values | float) -> Values:
    """Values ``(integers - zero_point) * scale`` in the units of ``scale``."""
    return (integers - zero_point) * scale


def fake_quantize(x: Values, scale: Values | float, zero_point: Values | float, spec: QuantSpec) -> Values:
    """The value on the grid nearest to ``x``, clipped to the grid's range: quantized and dequantized."""
    return dequantize(quantize(x, scale, zero_point, spec), scale, zero_point)
