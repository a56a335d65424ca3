"""Slice and Split. onnx2torch's Slice fails at version 1 and indexes with lists; its Split ends at version 13."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, register

# Ends that onnxruntime reads as "to the end of the axis", in either direction.
_FAR = (2**31 - 1, 2**63 - 1)


class Slice(nn.Module):
    """``x[start:end:step]`` on each of ``axes``, or on the first ones."""

    def forward(
        self, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
    ) -> Tensor:
        first, last = starts.tolist(), ends.tolist()
        named = range(len(first)) if axes is None else axes.tolist()
        strides = [1] * len(first) if steps is None else steps.tolist()
        for axis, start, end, step in zip(named, first, last, strides, strict=True):
            x = _slice_axis(x, axis, start, end, step)
        return x


class StaticSlice(nn.Module):
    """Slice whose starts, ends and axes are attributes."""

    def __init__(self, starts: list[int], ends: list[int], axes: list[int] | None) -> None:
        super().__init__()
        self.starts, self.ends, self.axes = starts, ends, axes

    def forward(self, x: Tensor) -> Tensor:
        axes = range(len(self.starts)) if self.axes is None else self.axes
        for axis, start, end in zip(axes, self.starts, self.ends, strict=True):
            x = _slice_axis(x, axis, start, end, 1)
        return x


class Split(nn.Module):
    """Split into the given sizes, or into ``parts`` equal parts, of which the last may be smaller."""

    def __init__(self, axis: int, parts: int, sizes: list[int] | None) -> None:
        super().__init__()
        self.axis, self.parts, self.sizes = axis, parts, sizes

    def forward(self, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...] | Tensor:
        sizes = self.sizes if split is None else split.tolist()
        parts: tuple[Tensor, ...] = x.split(sizes or -(-x.shape[self.axis] // self.parts), dim=self.axis)
        if len(parts) != self.parts:
            raise ValueError(f"Split: {x.shape[self.axis]} elements make {len(parts)} parts, not {self.parts}")
        # onnx2torch indexes what a module returns only if its node has several outputs.
        return parts[0] if self.parts == 1 else parts


def _slice_axis(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    size = x.shape[axis]
    # As in Python, but a start in front of the first element is the first element, also with a negative step.
    lowest, highest = (0, size) if step > 0 else (-1, size - 1)
    start = min(max(start + size if start < 0 else start, 0), highest)
    if end in _FAR:
        end = size if step > 0 else -1
    else:
        end = min(max(end + size if end < 0 else end, lowest), highest)
    taken = range(start, end, step)
    if step == 1:
        return x.narrow(axis, start, len(taken))
    return x.index_select(axis, torch.tensor(taken, dtype=torch.int64, device=x.device))


@register("Slice", 1, replace=(10, 11, 13))
def build_slice(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Starts, ends, axes and steps are inputs since version 10; before they are attributes, without steps."""
    attributes = node.attributes
    if "starts" in attributes:
        return StaticSlice(attributes["starts"], attributes["ends"], attributes.get("axes"))
    return Slice()


@register("Split", 18, replace=(2, 11, 13))
def build_split(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Sizes are an input since version 13, an attribute before; ``num_outputs`` (18) repeats the number of outputs."""
    return Split(node.attributes.get("axis", 0), len(node.output_values), node.attributes.get("split"))
