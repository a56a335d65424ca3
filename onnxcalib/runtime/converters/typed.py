"""Pow, and operators about types and sizes, where onnx2torch's get types or attributes wrong or are missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, register


class Pow(nn.Module):
    """A power in the type of the base, whatever the type of the exponent."""

    def forward(self, x: Tensor, exponent: Tensor) -> Tensor:
        return torch.pow(x, exponent).to(x.dtype)


class CastLike(nn.Module):
    """Cast to the type of another tensor."""

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x.to(other.dtype)


class IsInf(nn.Module):
    """Whether an element is infinite, with the signs that are detected."""

    def __init__(self, *, negative: bool, positive: bool) -> None:
        super().__init__()
        self.negative, self.positive = negative, positive

    def forward(self, x: Tensor) -> Tensor:
        return (x.isneginf() & self.negative) | (x.isposinf() & self.positive)


class Shape(nn.Module):
    """Sizes of the axes from ``start`` to before ``end``, int64 also for no axes."""

    def __init__(self, start: int, end: int | None) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(x.shape[self.start : self.end], dtype=torch.int64, device=x.device)


class Size(nn.Module):
    """Number of elements, int64."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@register("Pow", replace=(7, 12, 13, 15))
def build_pow(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Base and exponent may differ in type since version 12."""
    return Pow()


# The attributes that later versions add are for 8-bit floats only.
@register("CastLike", 15, 19, 21, 23, 24, 25)
def build_cast_like(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Floats are rounded towards zero where the other tensor has integers."""
    return CastLike()


@register("IsInf", 20, replace=(10,))
def build_is_inf(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Both signs are detected by default."""
    negative, positive = (node.attributes.get(f"detect_{sign}", 1) for sign in ("negative", "positive"))
    return IsInf(negative=bool(negative), positive=bool(positive))


@register("Shape", 19, 21, 23, 24, 25, replace=(1, 13, 15))
def build_shape(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """``start`` and ``end`` exist since version 15."""
    return Shape(node.attributes.get("start", 0), node.attributes.get("end"))


@register("Size", 1, 13, 19, 21, 23, 24, 25)
def build_size(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """For a tensor of any shape."""
    return Size()
