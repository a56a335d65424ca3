"""Operators that only change the shape. onnx2torch's sort mixed positive and negative axes wrongly or refuse axis 0."""

from __future__ import annotations

import math

from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, register


class Reshape(nn.Module):
    """Reshape; a size of 0 keeps the input's size on that axis unless ``allowzero``."""

    def __init__(self, *, allowzero: bool) -> None:
        super().__init__()
        self.allowzero = allowzero

    def forward(self, x: Tensor, shape: Tensor) -> Tensor:
        sizes = shape.tolist()
        if not self.allowzero:
            sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
        return x.reshape(sizes)


class Flatten(nn.Module):
    """To two axes: all before ``axis`` as one, and the rest as one."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        axis = self.axis + x.dim() if self.axis < 0 else self.axis
        return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


class Squeeze(nn.Module):
    """Remove the given axes, or without any all axes of size 1."""

    def __init__(self, axes: list[int] | None) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor, axes: Tensor | None = None) -> Tensor:
        named = self.axes if axes is None else axes.reshape(-1).tolist()
        return x.squeeze(tuple(named)) if named else x.squeeze()


class Unsqueeze(nn.Module):
    """Insert axes of size 1, whose numbers are those that they have in the result."""

    def __init__(self, axes: list[int] | None) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor, axes: Tensor | None = None) -> Tensor:
        named = self.axes if axes is None else axes.reshape(-1).tolist()
        assert named is not None  # ONNX requires them in one of the two
        rank = x.dim() + len(named)
        for axis in sorted(axis % rank for axis in named):
            x = x.unsqueeze(axis)
        return x


@register("Reshape", 19, 21, 23, 24, 25, replace=(5, 13, 14))
def build_reshape(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """``allowzero`` exists since version 14."""
    return Reshape(allowzero=bool(node.attributes.get("allowzero", 0)))


@register("Flatten", 1, 21, 23, 24, 25, replace=(9, 11, 13))
def build_flatten(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """A negative axis is allowed since version 11."""
    return Flatten(node.attributes.get("axis", 1))


@register("Squeeze", 23, 24, 25, replace=(1, 11, 13, 21))
def build_squeeze(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Axes are an input since version 13, an attribute before."""
    return Squeeze(node.attributes.get("axes"))


@register("Unsqueeze", 21, 23, 24, 25, replace=(1, 11, 13))
def build_unsqueeze(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Axes are an input since version 13, an attribute before."""
    return Unsqueeze(node.attributes.get("axes"))
