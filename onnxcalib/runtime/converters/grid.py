"""GridSample: values at given coordinates, which go from -1 to 1 over each axis of the input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, refuse_unless, register

# ONNX's names, those of version 16 and those of 20 -> torch's.
_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


class GridSample(nn.Module):
    """x (N, C, *spatial) at the points of a grid (N, *points, coordinates) -> (N, C, *points)."""

    def __init__(self, mode: str, padding: str, *, align_corners: bool) -> None:
        super().__init__()
        self.mode, self.padding, self.align_corners = mode, padding, align_corners

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, self.mode, self.padding, self.align_corners)


@register("GridSample", 16, 20, 22)
def build_grid_sample(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Version 20 renamed the modes and allowed a third axis."""
    mode, padding = node.attributes.get("mode", "bilinear"), node.attributes.get("padding_mode", "zeros")
    refuse_unless(mode in _MODES, f"GridSample: mode {mode}")
    return GridSample(_MODES[mode], padding, align_corners=bool(node.attributes.get("align_corners", 0)))
