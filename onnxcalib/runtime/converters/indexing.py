"""Gathering, scattering and TopK. onnx2torch's lack negative indices, and take any of several equal elements."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, refuse_unless, register

_REDUCTIONS = {"add": "sum", "mul": "prod", "min": "amin", "max": "amax"}


def _wrap(indices: Tensor, size: int) -> Tensor:
    """The indices with negative ones, which count from the end, made nonnegative."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


class NonZero(nn.Module):
    """Indices of the elements that are not zero, (rank, elements)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nonzero(x).T


class Trilu(nn.Module):
    """The upper or lower triangle of matrices, from diagonal ``k`` on."""

    def __init__(self, *, upper: bool) -> None:
        super().__init__()
        self.upper = upper

    def forward(self, x: Tensor, k: Tensor | None = None) -> Tensor:
        diagonal = 0 if k is None else int(k.item())
        return x.triu(diagonal) if self.upper else x.tril(diagonal)


class GatherElements(nn.Module):
    """One element for each index, along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor, indices: Tensor) -> Tensor:
        return x.gather(self.axis, _wrap(indices, x.shape[self.axis]))


class ScatterElements(nn.Module):
    """``x`` with the elements at the indices along an axis replaced by the updates, or reduced with them."""

    def __init__(self, axis: int, reduction: str) -> None:
        super().__init__()
        self.axis, self.reduction = axis, reduction

    def forward(self, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        targets = _wrap(indices, x.shape[self.axis])
        if self.reduction == "none":
            return x.scatter(self.axis, targets, updates)
        return x.scatter_reduce(self.axis, targets, updates, _REDUCTIONS[self.reduction])


class ScatterND(nn.Module):
    """``x`` with the slice at each tuple of indices replaced by an update, or added to it."""

    def __init__(self, *, add: bool) -> None:
        super().__init__()
        self.add = add

    def forward(self, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        targets = tuple(_wrap(part, size) for part, size in zip(indices.unbind(-1), x.shape, strict=False))
        return x.index_put(targets, updates, accumulate=self.add)


class OneHot(nn.Module):
    """On a new axis the second of two values at each index, and the first elsewhere, also for indices out of range."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
        count = int(depth.item())
        axis = self.axis % (indices.dim() + 1)
        classes = torch.arange(count, device=indices.device).reshape([-1] + [1] * (indices.dim() - axis))
        hot = _wrap(indices, count).unsqueeze(axis) == classes
        return torch.where(hot, values[1], values[0])


class TopK(nn.Module):
    """The largest or smallest elements along an axis, in order, and their indices; the first of equal elements."""

    def __init__(self, axis: int, count: int | None, *, largest: bool) -> None:
        super().__init__()
        self.axis, self.count, self.largest = axis, count, largest

    def forward(self, x: Tensor, k: Tensor | None = None) -> tuple[Tensor, Tensor]:
        count = self.count if k is None else int(k.item())
        assert count is not None  # ONNX requires it in one of the two
        values, indices = x.sort(dim=self.axis, descending=self.largest, stable=True)
        return values.narrow(self.axis, 0, count), indices.narrow(self.axis, 0, count)


@register("NonZero", 9, replace=(13,))
def build_nonzero(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Version 13 allows one more type."""
    return NonZero()


@register("Trilu", 14)
def build_trilu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """The upper triangle by default."""
    return Trilu(upper=bool(node.attributes.get("upper", 1)))


@register("GatherElements", replace=(11, 13))
def build_gather_elements(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Along the first axis by default."""
    return GatherElements(node.attributes.get("axis", 0))


@register("ScatterElements", 11, 13, 16, 18)
def build_scatter_elements(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Reductions exist since version 16, min and max since 18."""
    reduction = node.attributes.get("reduction", "none")
    refuse_unless(reduction in ("none", *_REDUCTIONS), f"ScatterElements: reduction {reduction}")
    return ScatterElements(node.attributes.get("axis", 0), reduction)


@register("ScatterND", 18, replace=(11, 13, 16))
def build_scatter_nd(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Reductions exist since version 16; all but add are refused."""
    reduction = node.attributes.get("reduction", "none")
    refuse_unless(reduction in ("none", "add"), f"ScatterND: reduction {reduction}")
    return ScatterND(add=reduction == "add")


@register("OneHot", 9, 11)
def build_one_hot(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Negative indices and a negative axis are allowed since version 11."""
    return OneHot(node.attributes.get("axis", -1))


@register("TopK", 24, replace=(1, 10, 11))
def build_top_k(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """The count is an attribute before version 10; ``largest`` exists since 11."""
    attributes = node.attributes
    return TopK(attributes.get("axis", -1), attributes.get("k"), largest=bool(attributes.get("largest", 1)))
