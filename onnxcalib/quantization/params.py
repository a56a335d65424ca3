"""From integers and scales to the parameters of a layer, whose int32 bias must not overflow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph.layer_params import LayerParams
from ..graph.weight_file import put_integers
from ..numeric.rounding import next_power
from ..spec import LayerScheme, QParams, QuantSpec

# int32 bias: the largest |bias| / (scale_x * scale_w) that a layer may have, a quarter of the type's range.
BIAS_LEVELS = 2.0**29

# An integer that changes by less is rounded to itself.
LEAST_CHANGE = 0.25


def make_params(
    layer: LayerScheme,
    integers: np.ndarray,
    grid: tuple[np.ndarray, np.ndarray | None],
    bias: np.ndarray | None,
    input_grid: QParams | None,
) -> LayerParams:
    """LayerParams with a scale that ``guard_scale`` allows; integers, in the weight's own shape, are rescaled to it.

    grid: scale and zero point of each channel; all scales are equal where the layer has one. Channels whose integers
    are rescaled have no zero point, as almost all of their weights are zero then.
    """
    spec = layer.weight_spec
    scale = grid[0] if spec.axis is not None else grid[0][0]
    allowed = guard_scale(scale, bias, input_grid, spec)
    ratio, zero = scale / allowed, np.zeros(allowed.shape, np.int32)
    if grid[1] is not None:
        changed = np.abs(ratio - 1) > LEAST_CHANGE
        zero = np.where(changed, 0, grid[1]).astype(np.float32)
        others = [i for i in range(integers.ndim) if i != spec.axis]
        integers = integers - np.expand_dims(np.where(changed, grid[1], 0), others)
    stored = put_integers(_rescale(integers, ratio, spec), spec.bits)
    return LayerParams(stored, QParams(allowed, zero, spec), bias)


def give_scale(
    params: LayerParams, scale: np.ndarray, bias: np.ndarray | None, input_grid: QParams | None
) -> LayerParams:
    """The layer with this bias, and a scale that ``guard_scale`` allows for the same integers.

    A guarded scale of a channel whose weights are almost zero may leave its integers. One for all channels, or a power
    of two, rescales them.
    """
    spec, integers = params.grid.spec, params.integers
    allowed = guard_scale(scale, bias, input_grid, spec)
    if spec.axis is None or (spec.power_of_two and spec.block is None):
        integers = put_integers(_rescale(params.read(), scale / allowed, spec), spec.bits)
    return LayerParams(integers, replace(params.grid, scale=allowed), bias)


def _rescale(integers: np.ndarray, ratio: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """The integers times the ratio of each channel, or the one of all."""
    change = np.max(np.abs(ratio - 1), initial=0)
    if change * max(-spec.qmin, spec.qmax) < LEAST_CHANGE:  # as where only float32 has rounded the scale
        return np.asarray(integers, np.int8)
    others = [i for i in range(integers.ndim) if i != spec.axis]
    rescaled = integers * (ratio if spec.axis is None else np.expand_dims(ratio, others))
    np.rint(rescaled, out=rescaled)  # in place, as those of a large layer are many
    result: np.ndarray = rescaled.astype(np.int8)
    return result


def guard_scale(scale: np.ndarray, bias: np.ndarray | None, input_grid: QParams | None, spec: QuantSpec) -> np.ndarray:
    """The scale, raised where the int32 bias would overflow, as in a channel whose weights are almost zero.

    A power of two is raised to another, a negative scale lowered. The bias of a layer that reads float is float too,
    and cannot overflow.
    """
    size = np.maximum(np.abs(scale) if spec.signed_scale else scale, np.finfo(np.float32).tiny)
    if input_grid is not None and bias is not None and (spec.axis is None or len(bias) == len(scale)):
        least = np.abs(bias) / (BIAS_LEVELS * float(input_grid.scale))
        size = np.maximum(size, least if spec.axis is not None else least.max())
    allowed = np.asarray(next_power(size) if spec.power_of_two else size, np.float32)
    return np.copysign(allowed, scale) if spec.signed_scale else allowed


def spread(values: np.ndarray, params: LayerParams) -> np.ndarray:
    """Values of scales, in an array that broadcasts against the weight."""
    spec, shape = params.grid.spec, params.integers.shape
    if spec.axis is None:
        return values
    if spec.block is None:
        return np.expand_dims(values, [axis for axis in range(len(shape)) if axis != spec.axis])
    other = 1 - spec.axis
    return np.repeat(values, spec.block, other).take(range(shape[other]), other)


def dequantize_weight(params: LayerParams) -> np.ndarray:
    """The quantized weight, float32."""
    values = params.read().astype(np.float32)
    if params.grid.spec.has_zeros:
        values -= spread(params.grid.zero_point, params)
    values *= spread(params.grid.scale, params)
    return values
