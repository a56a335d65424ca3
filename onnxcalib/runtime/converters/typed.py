"""Operators about types and sizes, and powers, of which onnx2torch's own get types or attributes wrong."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, register


class Pow(nn.Module):
    """A power of the base's type, whatever the exponent's."""

    def forward(self, x: Tensor, exponent: Tensor) -> Tensor:
        return torch.pow(x, exponent).to(x.dtype)


class CastLike(nn.Module):
    """To the type of another tensor."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x.to(other.dtype)


class IsInf(nn.Module):
    """Whether an element is infinite, of one sign or of either."""

    def __init__(self, *, negative: bool, positive: bool) -> None:
        super().__init__()
        self.negative, self.positive = negative, positive

    def forward(self, x: Tensor) -> Tensor:
        return (x.isneginf() & self.negative) | (x.isposinf() & self.positive)


class Shape(nn.Module):
    """Sizes from axis ``start`` to before axis ``end``, int64 also where there are none."""

    def __init__(self, start: int, end: int | None) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(x.shape[self.start : self.end], dtype=torch.int64, device=x.device)


class Size(nn.Module):
    """Number of elements."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@register("Pow", replace=(7, 12, 13, 15))
def build_pow(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Base and exponent may differ in type since 12."""
    return Pow()


# Attributes of later versions concern 8-bit floats alone.
@register("CastLike", 15, 19, 21, 23, 24, 25)
def build_cast_like(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Towards zero, from floats to integers."""
    return CastLike()


@register("IsInf", 20, replace=(10,))
def build_is_inf(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Of both signs unless told otherwise."""
    negative, positive = (node.attributes.get(f"detect_{sign}", 1) for sign in ("negative", "positive"))
    return IsInf(negative=bool(negative), positive=bool(positive))


@register("Shape", 19, 21, 23, 24, 25, replace=(1, 13, 15))
def build_shape(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Some of the axes alone since 15."""
    return Shape(node.attributes.get("start", 0), node.attributes.get("end"))


@register("Size", 1, 13, 19, 21, 23, 24, 25)
def build_size(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Of a tensor of any shape."""
    return Size()
