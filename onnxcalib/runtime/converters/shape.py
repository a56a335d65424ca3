"""Operators that change the shape alone. onnx2torch's own order mixed negative axes wrongly, or refuse axis 0."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, register


class Reshape(nn.Module):
    """Reshape; a 0 keeps the size at its place unless ``allowzero``."""

    def __init__(self, *, allowzero: bool) -> None:
        super().__init__()
        self.allowzero = allowzero

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        sizes = shape.tolist()
        if not self.allowzero:
            sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
        return x.reshape(sizes)


class Flatten(nn.Module):
    """To two axes: those before ``axis``, and the rest."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        axis = self.axis + x.dim() if self.axis < 0 else self.axis
        return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


class Squeeze(nn.Module):
    """Remove the axes named, or all of size 1."""

    def __init__(self, axes: list[int] | None) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor, axes: Tensor | None = None) -> Tensor:
        named = self.axes if axes is None else axes.reshape(-1).tolist()
        return x.squeeze(tuple(named)) if named else x.squeeze()


class Unsqueeze(nn.Module):
    """Insert axes of size 1 at these places of the result."""

    def __init__(self, axes: list[int] | None) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor, axes: Tensor | None = None) -> Tensor:
        named = self.axes if axes is None else axes.reshape(-1).tolist()
        rank = x.dim() + len(named)
        for axis in sorted(axis % rank for axis in named):
            x = x.unsqueeze(axis)
        return x


@register("Reshape", 19, 21, 23, 24, 25, replace=(5, 13, 14))
def build_reshape(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """``allowzero`` exists since 14."""
    return Reshape(allowzero=bool(node.attributes.get("allowzero", 0)))


@register("Flatten", 1, 21, 23, 24, 25, replace=(9, 11, 13))
def build_flatten(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """A negative axis is allowed since 11."""
    return Flatten(node.attributes.get("axis", 1))


@register("Squeeze", 23, 24, 25, replace=(1, 11, 13, 21))
def build_squeeze(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Axes are an input since 13, an attribute before."""
    return Squeeze(node.attributes.get("axes"))


@register("Unsqueeze", 21, 23, 24, 25, replace=(1, 11, 13))
def build_unsqueeze(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Axes are an input since 13, an attribute before."""
    return Unsqueeze(node.attributes.get("axes"))
