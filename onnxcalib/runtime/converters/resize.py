"""Resize and Upsample. onnx2torch's own takes torch's coordinates for ONNX's and only warns where they differ."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, refuse_unless, register

_F32 = np.float32
# Of a place, in elements, where onnxruntime computes it in float32: some units in the last place of 1,000.
_ROUNDING_ERROR = 1e-3
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric", "align_corners", "asymmetric")
_ROUNDINGS = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


class Resize(nn.Module):
    """Nearest, linear or cubic interpolation, one axis after the other, at the coordinates that ONNX defines.

    bend: the cubic's coefficient; inside: neighbours beyond the edges have no weight.
    """

    def __init__(
        self, mode: str, coordinates: str, rounding: str, axes: list[int] | None, *,
        bend: float = -0.75, inside: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bend, self.inside = bend, inside
        self.mode, self.coordinates, self.rounding, self.axes = mode, coordinates, rounding, axes

    def forward(self, x: Tensor, scales: Tensor | None = None, sizes: Tensor | None = None) -> Tensor:
        axes = range(x.dim()) if self.axes is None else self.axes
        if sizes is not None and sizes.numel():
            targets = [
                (size, _F32(size) / _F32(x.shape[axis])) for axis, size in zip(axes, sizes.tolist(), strict=True)
            ]
        else:
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
            place = _nearest(self.rounding, source, exact, last)
            return x.index_select(axis, torch.from_numpy(place).to(x.device))
        if self.mode == "cubic":
            return self._bend_axis(x, axis, source)
        source = np.clip(source, 0, last)
        lower = np.floor(source).astype(np.int64)
        upper = np.minimum(lower + 1, last)
        shape = [1] * x.dim()
        shape[axis] = size
        weight = torch.from_numpy(source - lower.astype(np.float32)).to(x).reshape(shape)
        first = x.index_select(axis, torch.from_numpy(lower).to(x.device))
        second = x.index_select(axis, torch.from_numpy(upper).to(x.device))
        return first * (1 - weight) + second * weight

    def _bend_axis(self, x: Tensor, axis: int, source: np.ndarray) -> Tensor:
        """The sum of the four elements around each place, by Keys' weights."""
        last = x.shape[axis] - 1
        below = np.floor(source)
        away, a = source - below, self.bend
        weights = []
        for step in (-1, 0, 1, 2):
            far = np.abs(away - step)
            near = ((a + 2) * far - (a + 3)) * far * far + 1
            weight = np.where(far <= 1, near, ((a * far - 5 * a) * far + 8 * a) * far - 4 * a)
            place = below + step
            weights.append(np.where((place < 0) | (place > last), 0, weight) if self.inside else weight)
        total = np.sum(weights, 0) if self.inside else 1
        shape = [1] * x.dim()
        shape[axis] = len(source)
        terms = []
        for step, weight in zip((-1, 0, 1, 2), weights, strict=True):
            place = torch.from_numpy(np.clip(below + step, 0, last).astype(np.int64)).to(x.device)
            terms.append(x.index_select(axis, place) * torch.from_numpy(weight / total).to(x).reshape(shape))
        return sum(terms)


def _original_coordinates(mode: str, size: int, original: int, scale: np.floating) -> np.ndarray:
    """Place on the original axis of each element of the resized one, in the precision of ``scale``."""
    kind = type(scale)
    place, half = np.arange(size, dtype=kind), kind(0.5)
    if mode == "asymmetric":
        return place / scale
    if mode == "align_corners":
        return np.zeros_like(place) if size == 1 else place * kind(original - 1) / kind(size - 1)
    if mode == "pytorch_half_pixel" and size <= 1:
        return np.zeros_like(place)
    offset = kind(0)
    if mode == "half_pixel_symmetric":
        offset = kind(original) / kind(2) * (kind(1) - kind(size) / (scale * kind(original)))
    return offset + (place + half) / scale - half


def _nearest(rounding: str, source: np.ndarray, exact: np.ndarray, last: int) -> np.ndarray:
    """Element that is nearest to each place; NotImplementedError where float32's rounding decides which it is."""
    below, at, above = (
        np.clip(_ROUNDINGS[rounding](exact + shift), 0, last) for shift in (-_ROUNDING_ERROR, 0, _ROUNDING_ERROR)
    )
    refuse_unless(bool(((below == above) | (source == exact)).all()), "Resize: a place is between two elements")
    return at.astype(np.int64)


@register("Resize", 18, 19, replace=(10, 11, 13))
def build_resize(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """Nearest, linear and cubic, without antialias, cropping or a kept aspect ratio."""
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
    symmetric = coordinates == "half_pixel_symmetric"  # its places are exact for no scale: see _nearest
    refuse_unless(mode != "nearest" or not symmetric, f"Resize: coordinate_transformation_mode {coordinates}, nearest")
    rounding = attributes.get("nearest_mode", "round_prefer_floor")
    refuse_unless(rounding in _ROUNDINGS, f"Resize: nearest_mode {rounding}")
    # The second input, roi, is for the cropping mode that is refused above.
    bend, inside = attributes.get("cubic_coeff_a", -0.75), bool(attributes.get("exclude_outside", 0))
    module = Resize(mode, coordinates, rounding, attributes.get("axes"), bend=bend, inside=inside)
    return Converted(module, (inputs[0], *inputs[2:]))


@register("Upsample", 9)
def build_upsample(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Resize as it was before opset 10."""
    mode = node.attributes.get("mode", "nearest")
    refuse_unless(mode in ("nearest", "linear"), f"Upsample: mode {mode}")
    return Resize(mode, "asymmetric", "floor", None)
