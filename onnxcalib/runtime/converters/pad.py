"""Pad. onnx2torch's knows neither ``axes`` nor ``wrap``, and reflects on the last axes only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, refuse_unless, register

_MODES = ("constant", "reflect", "edge", "wrap")


class Pad(nn.Module):
    """Pad or, where ``pads`` are negative, crop any axes."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
        amounts = pads.tolist()
        rank = len(amounts) // 2
        named = range(rank) if axes is None else axes.reshape(-1).tolist()
        margins = [(0, 0)] * x.dim()
        for axis, before, after in zip(named, amounts[:rank], amounts[rank:], strict=True):
            margins[axis] = (before, after)
        if self.mode == "constant":
            flat = [amount for pair in reversed(margins) for amount in pair]
            return F.pad(x, flat, value=0.0 if value is None else value.item())
        for axis, margin in enumerate(margins):
            if margin != (0, 0):
                x = x.index_select(axis, self._source(x.shape[axis], *margin).to(x.device))
        return x

    def _source(self, size: int, before: int, after: int) -> Tensor:
        """Index of the input element from which each element of a padded axis is copied."""
        # ONNX does not say whether elements cropped on one side are copied to the other.
        refuse_unless(before * after >= 0, f"Pad: mode {self.mode} with pads {before} and {after}")
        index = torch.arange(-before, size + after)
        if self.mode == "edge":
            return index.clamp(0, size - 1)
        if self.mode == "wrap":
            return index % size
        refuse_unless(max(before, after) < size, f"Pad: mode reflect, {max(before, after)} of {size} elements")
        reflected: Tensor = (size - 1) - ((size - 1) - index.abs()).abs()
        return reflected


class StaticPad(nn.Module):
    """Pad whose amounts and value are attributes."""

    def __init__(self, mode: str, pads: list[int], value: float) -> None:
        super().__init__()
        self.pad, self.pads, self.value = Pad(mode), torch.tensor(pads), torch.tensor(value)

    def forward(self, x: Tensor) -> Tensor:
        padded: Tensor = self.pad(x, self.pads, self.value)
        return padded


@register("Pad", 18, 19, 21, 23, 24, 25, replace=(2, 11, 13))
def build_pad(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Amounts and value are inputs since version 11, attributes before; axes are an input since 18."""
    mode = node.attributes.get("mode", "constant")
    refuse_unless(mode in _MODES, f"Pad: mode {mode}")
    if "pads" in node.attributes:
        return StaticPad(mode, node.attributes["pads"], node.attributes.get("value", 0.0))
    return Pad(mode)
