"""Resize and Upsample. onnx2torch's Resize uses torch's coordinates and only warns where ONNX's differ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, refuse_unless, register

_F32 = np.float32
# Error of a coordinate, in elements, that onnxruntime computes in float32: some units in the last place of 1,000.
_ROUNDING_ERROR = 1e-3
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")
_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


class Resize(nn.Module):
    """Nearest, linear or cubic interpolation, one axis after the other, at the coordinates that ONNX defines.

    cubic: the coefficient a of Keys' kernel; inside: neighbours beyond the edges have no weight.
    """

    def __init__(
        self, mode: str, coordinates: str, rounding: str, axes: list[int] | None, *,
        cubic: float = -0.75, inside: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.cubic, self.inside = cubic, inside
        self.mode, self.coordinates, self.rounding, self.axes = mode, coordinates, rounding, axes

    def forward(self, x: Tensor, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        axes = range(x.dim()) if self.axes is None else self.axes
        if sizes is not None and sizes.numel():
            targets = [
                (size, _F32(size) / _F32(x.shape[axis])) for axis, size in zip(axes, sizes.tolist(), strict=True)
            ]
        else:
            assert scales is not None  # ONNX requires scales or sizes
            factors = [_F32(scale) for scale in scales.tolist()]
            targets = [(int(_F32(x.shape[axis]) * s), s) for axis, s in zip(axes, factors, strict=True)]
        for axis, (size, scale) in zip(axes, targets, strict=True):
            if scale != 1:
                x = self._resize_axis(x, axis, size, scale)
        return x

    def _resize_axis(self, x: Tensor, axis: int, size: int, scale: np.float32) -> Tensor:
        last = x.shape[axis] - 1
        source = _original_coordinates(self.coordinates, size, last + 1, scale)
        if self.mode == "nearest":
            exact = _original_coordinates(self.coordinates, size, last + 1, np.float64(scale))
            nearest = _nearest(self.rounding, source, exact, last)
            return x.index_select(axis, torch.from_numpy(nearest).to(x.device))
        if self.mode == "cubic":
            return self._cubic_axis(x, axis, source)
        source = np.clip(source, 0, last)
        lower = np.floor(source).astype(np.int64)
        upper = np.minimum(lower + 1, last)
        shape = [1] * x.dim()
        shape[axis] = size
        weight = torch.from_numpy(source - lower.astype(np.float32)).to(x).reshape(shape)
        first = x.index_select(axis, torch.from_numpy(lower).to(x.device))
        second = x.index_select(axis, torch.from_numpy(upper).to(x.device))
        return first * (1 - weight) + second * weight

    def _cubic_axis(self, x: Tensor, axis: int, source: np.ndarray) -> Tensor:
        """The sum of the four elements around each coordinate, weighted by the cubic kernel of Keys 1981."""
        last = x.shape[axis] - 1
        below = np.floor(source)
        fraction, a = source - below, self.cubic
        weights = []
        for offset in (-1, 0, 1, 2):
            far = np.abs(fraction - offset)
            near = ((a + 2) * far - (a + 3)) * far * far + 1
            weight = np.where(far <= 1, near, ((a * far - 5 * a) * far + 8 * a) * far - 4 * a)
            index = below + offset
            weights.append(np.where((index < 0) | (index > last), 0, weight) if self.inside else weight)
        total = np.sum(weights, 0) if self.inside else 1
        shape = [1] * x.dim()
        shape[axis] = len(source)
        terms = []
        for offset, weight in zip((-1, 0, 1, 2), weights, strict=True):
            indices = torch.from_numpy(np.clip(below + offset, 0, last).astype(np.int64)).to(x.device)
            terms.append(x.index_select(axis, indices) * torch.from_numpy(weight / total).to(x).reshape(shape))
        return sum(terms, x.new_zeros(()))


def _original_coordinates(mode: str, size: int, original: int, scale: np.floating) -> np.ndarray:
    """Coordinate on the original axis of each element of the resized one, in the precision of ``scale``."""
    kind = type(scale)
    index: np.ndarray = np.arange(size, dtype=kind)
    half_pixel = kind(0.5)
    if mode == "asymmetric":
        index = index / scale
    elif mode == "align_corners":
        index = np.zeros_like(index) if size == 1 else index * kind(original - 1) / kind(size - 1)
    elif mode == "pytorch_half_pixel" and size <= 1:
        index = np.zeros_like(index)
    else:
        offset = kind(0)
        if mode == "half_pixel_symmetric":
            offset = kind(original) / kind(2) * (kind(1) - kind(size) / (scale * kind(original)))
        index = offset + (index + half_pixel) / scale - half_pixel
    return index


def _nearest(rounding: str, source: np.ndarray, exact: np.ndarray, last: int) -> np.ndarray:
    """Index of the element nearest to each coordinate; ``exact`` has the coordinates in float64.

    Raises NotImplementedError where float32's rounding decides which element is nearest.
    """
    below, at, above = (
        np.clip(_ROUNDINGS[rounding](exact + shift), 0, last) for shift in (-_ROUNDING_ERROR, 0, _ROUNDING_ERROR)
    )
    refuse_unless(bool(((below == above) | (source == exact)).all()), "Resize: a coordinate lies between two elements")
    nearest: np.ndarray = at.astype(np.int64)
    return nearest


@register("Resize", 18, 19, replace=(10, 11, 13))
def build_resize(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """Refuses antialias, cropping and a kept aspect ratio."""
    attributes = node.attributes
    mode = attributes.get("mode", "nearest")
    refuse_unless(mode in ("nearest", "linear", "cubic"), f"Resize: mode {mode}")
    refuse_unless(not attributes.get("antialias", 0), "Resize: antialias")
    policy = attributes.get("keep_aspect_ratio_policy", "stretch")
    refuse_unless(policy == "stretch", f"Resize: keep_aspect_ratio_policy {policy}")
    inputs = list(node.input_values)
    if len(inputs) == 2:  # version 10: data and scales, asymmetric, rounding down
        return Converted(Resize(mode, "asymmetric", "floor", None), tuple(inputs))
    coordinates = attributes.get("coordinate_transformation_mode", "half_pixel")
    refuse_unless(coordinates in _COORDINATES, f"Resize: coordinate_transformation_mode {coordinates}")
    symmetric = coordinates == "half_pixel_symmetric"  # no scale has exact coordinates: see _nearest
    refuse_unless(mode != "nearest" or not symmetric, f"Resize: coordinate_transformation_mode {coordinates}, nearest")
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    refuse_unless(rounding in _ROUNDINGS, f"Resize: nearest_mode {rounding}")
    # The second input, roi, only counts in the cropping mode, which is refused above.
    cubic, inside = attributes.get("cubic_coeff_a", -0.75), bool(attributes.get("exclude_outside", 0))
    module = Resize(mode, coordinates, rounding, attributes.get("axes"), cubic=cubic, inside=inside)
    return Converted(module, (inputs[0], *inputs[2:]))


@register("Upsample", 9)
def build_upsample(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Resize as it was called before opset 10."""
    mode = node.attributes.get("mode", "nearest")
    refuse_unless(mode in ("nearest", "linear"), f"Upsample: mode {mode}")
    return Resize(mode, "asymmetric", "floor", None)
