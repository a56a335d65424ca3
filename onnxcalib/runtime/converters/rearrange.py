"""DepthToSpace, whose default mode onnx2torch lacks, and SpaceToDepth, which it lacks entirely."""

from __future__ import annotations

from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, refuse_unless, register


class DepthToSpace(nn.Module):
    """(N, C b b, H, W) -> (N, C, H b, W b)."""

    def __init__(self, block: int, *, depth_first: bool) -> None:
        super().__init__()
        self.block, self.depth_first = block, depth_first

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b, depth = self.block, c // self.block**2
        if self.depth_first:
            parts = x.reshape(n, b, b, depth, h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            parts = x.reshape(n, depth, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
        return parts.reshape(n, depth, h * b, w * b)


class SpaceToDepth(nn.Module):
    """(N, C, H b, W b) -> (N, b b C, H, W)."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = self.block
        parts = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
        return parts.reshape(n, c * b * b, h // b, w // b)


@register("DepthToSpace", 1, replace=(11, 13))
def build_depth_to_space(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Mode CRD (column, row, depth) exists since version 11."""
    mode = node.attributes.get("mode", "DCR")
    refuse_unless(mode in ("DCR", "CRD"), f"DepthToSpace: mode {mode}")
    return DepthToSpace(node.attributes["blocksize"], depth_first=mode == "DCR")


@register("SpaceToDepth", 1, 13)
def build_space_to_depth(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """The inverse of DepthToSpace in its default mode DCR."""
    return SpaceToDepth(node.attributes["blocksize"])
