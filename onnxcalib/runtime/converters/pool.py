"""Pools. onnx2torch's need the input's rank, refuse asymmetric padding, and ignore dilations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, has_one_output, refuse_unless, register
from .window import Window, pad_spatial, read_window

_AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class AveragePool(nn.Module):
    """Sum over each window, divided by the number of its elements, padding included if ``counts_padding``."""

    def __init__(self, window: Window, *, counts_padding: bool) -> None:
        super().__init__()
        self.window, self.counts_padding = window, counts_padding

    def forward(self, x: Tensor) -> Tensor:
        window, sizes = self.window, x.shape[2:]
        margins = window.margins(sizes)
        overhangs = [(0, overhang) for overhang in window.overhangs(sizes, margins)]
        average = _AVERAGES[window.rank]
        padded = pad_spatial(pad_spatial(x, margins, 0.0), overhangs, 0.0)
        mean = average(padded, window.kernel, window.strides)
        if padded.shape == x.shape:
            return mean
        counted = x.new_ones((1, 1, *sizes))
        counted = pad_spatial(pad_spatial(counted, margins, float(self.counts_padding)), overhangs, 0.0)
        return mean / average(counted, window.kernel, window.strides)


class MaxPool(nn.Module):
    """Maximum over each window, without the padding."""

    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        window, sizes = self.window, x.shape[2:]
        margins = window.margins(sizes)
        reach = [
            (before, after + overhang)
            for (before, after), overhang in zip(margins, window.overhangs(sizes, margins), strict=True)
        ]
        padded = pad_spatial(x, reach, -torch.inf)
        return _MAXIMA[window.rank](padded, window.kernel, window.strides, dilation=window.dilations)


class GlobalPool(nn.Module):
    """Mean or maximum over all spatial axes, which become 1."""

    def __init__(self, *, maximum: bool) -> None:
        super().__init__()
        self.maximum = maximum

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(2, x.dim()))
        return x.amax(axes, keepdim=True) if self.maximum else x.mean(axes, keepdim=True)


@register("AveragePool", 19, 22, replace=(7, 10, 11))
def build_average_pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Refuses dilations, which torch's AvgPool lacks."""
    window = read_window(node, node.attributes["kernel_shape"])
    refuse_unless(window.rank in _AVERAGES, f"AveragePool: {window.rank} spatial axes")
    refuse_unless(set(window.dilations) == {1}, f"AveragePool: dilations {window.dilations}")
    return AveragePool(window, counts_padding=bool(node.attributes.get("count_include_pad", 0)))


@register("MaxPool", 22, replace=(8, 10, 11, 12))
def build_max_pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Refuses the second output, the indices."""
    window = read_window(node, node.attributes["kernel_shape"])
    refuse_unless(window.rank in _MAXIMA, f"MaxPool: {window.rank} spatial axes")
    refuse_unless(has_one_output(node), "MaxPool: its indices are used")
    return MaxPool(window)


@register("GlobalAveragePool", 22, replace=(1,))
@register("GlobalMaxPool", 1, 22)
def build_global_pool(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """For inputs of any rank."""
    return GlobalPool(maximum=node.operation_type == "GlobalMaxPool")
