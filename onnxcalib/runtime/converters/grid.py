"""GridSample: values at places that are given in the input's own coordinates, from -1 to 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, refuse_unless, register

# ONNX's name, of either version -> torch's.
_MODES = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest", "bicubic": "bicubic", "cubic": "bicubic"}


class GridSample(nn.Module):
    """(N, C, spatial...) and a grid (N, places..., coordinates) -> (N, C, places...)."""

    def __init__(self, mode: str, padding: str, *, align_corners: bool) -> None:
        super().__init__()
        self.mode, self.padding, self.align_corners = mode, padding, align_corners

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        return F.grid_sample(x, grid, self.mode, self.padding, self.align_corners)


@register("GridSample", 16, 20, 22)
def build_grid_sample(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Modes were renamed, and a third axis allowed, in 20."""
    mode, padding = node.attributes.get("mode", "bilinear"), node.attributes.get("padding_mode", "zeros")
    refuse_unless(mode in _MODES, f"GridSample: mode {mode}")
    return GridSample(_MODES[mode], padding, align_corners=bool(node.attributes.get("align_corners", 0)))
