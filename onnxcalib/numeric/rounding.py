"""The one definition of rounding to an integer grid, for NumPy arrays and torch tensors alike."""

from __future__ import annotations

from ..spec import QuantSpec


def quantize(x, scale, zero_point, spec: QuantSpec):
    """Integers ``clip(round_half_even(x / scale) + zero_point, qmin, qmax)``, in x's own float type.

    Division, and not a product with 1/scale: only so every value agrees with onnxruntime's QuantizeLinear.
    ``scale`` and ``zero_point`` broadcast against ``x``; NumPy's and torch's ``round`` both take halves to even.
    """
    return ((x / scale).round() + zero_point).clip(spec.qmin, spec.qmax)


def dequantize(integers, scale, zero_point):
    """``(integers - zero_point) * scale``."""
    return (integers - zero_point) * scale


def fake_quantize(x, scale, zero_point, spec: QuantSpec):
    """The value on the grid nearest to ``x``, clipped to the grid's range."""
    return dequantize(quantize(x, scale, zero_point, spec), scale, zero_point)
