"""The one definition of rounding to an integer grid, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ..spec import LEAST_PEAK, ROW_SCALE, ROW_ZERO_POINT, QuantSpec

if TYPE_CHECKING:
    import torch

# Values, and a scale or zero point that is not a number, are all arrays or all tensors.
Values = TypeVar("Values", np.ndarray, "torch.Tensor")
# The integers of DynamicQuantizeLinear, and of what a dynamic layer reads.
DYNAMIC = QuantSpec(8)


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


def fake_quantize_dynamically(x: torch.Tensor) -> torch.Tensor:
    """Values as ONNX's DynamicQuantizeLinear rounds them: to 256 levels between the ends of all values and 0.

    scale = (max(x, 0) - min(x, 0)) / 255, zero point = round_half_even(-min(x, 0) / scale), in x's own float type.
    """
    if not x.numel():
        return x
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / DYNAMIC.qmax
    scale = scale.masked_fill(scale == 0, 1)
    return fake_quantize(x, scale, (-low / scale).round().clamp(DYNAMIC.qmin, DYNAMIC.qmax), DYNAMIC)


def fake_quantize_rows(x: torch.Tensor) -> torch.Tensor:
    """Values of each row, along the last axis, on 255 levels between its largest magnitude and minus that.

    ``peak fake_quantize(x / peak)`` in x's own float type, as dynamic layers compute it.
    """
    if not x.numel():
        return x
    peaks = x.abs().amax(-1, keepdim=True).clamp(min=LEAST_PEAK)
    scale = x.new_tensor(ROW_SCALE)
    return fake_quantize(x / peaks, scale, ROW_ZERO_POINT, DYNAMIC) * peaks
