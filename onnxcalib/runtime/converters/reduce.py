"""Reductions. onnx2torch's lack version 18, and reduce a wrong axis where several negative ones are given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, register

_Axes = tuple[int, ...]
_SINCE = {"ReduceMax": (18, 20), "ReduceMin": (18, 20), "ReduceSum": ()}
_REPLACED = {"ReduceMax": (1, 11, 12, 13), "ReduceMin": (1, 11, 12, 13)}


def _multiply(x: Tensor, axes: _Axes, keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


_REDUCTIONS: dict[str, Callable[[Tensor, _Axes, bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _multiply,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
}
# What a composite reduction over no axes does to each element.
_ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceLogSum": torch.log,
    "ReduceSumSquare": torch.square,
}


class Reduce(nn.Module):
    """A reduction over the axes of an attribute or an input; without any over all axes, or over none if ``noop``."""

    def __init__(self, op: str, axes: list[int] | None, *, keep: bool, noop: bool) -> None:
        super().__init__()
        self.op, self.axes, self.keep, self.noop = op, axes, keep, noop

    def forward(self, x: Tensor, axes: Tensor | None = None) -> Tensor:
        named = self.axes if axes is None else axes.reshape(-1).tolist()
        if not named and self.noop:
            return _ELEMENTWISE.get(self.op, torch.clone)(x)
        dims = tuple(axis % x.dim() for axis in named) if named else tuple(range(x.dim()))
        return _REDUCTIONS[self.op](x, dims, self.keep)


def build_reduce(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Axes are an input since version 18 (ReduceSum: 13), an attribute before."""
    attributes = node.attributes
    keep, noop = bool(attributes.get("keepdims", 1)), bool(attributes.get("noop_with_empty_axes", 0))
    return Reduce(node.operation_type, attributes.get("axes"), keep=keep, noop=noop)


for _op in _REDUCTIONS:
    register(_op, *_SINCE.get(_op, (18,)), replace=_REPLACED.get(_op, (1, 11, 13)))(build_reduce)
