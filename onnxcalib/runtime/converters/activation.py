"""Activations that onnx2torch lacks or computes differently."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, refuse_unless, register


class Clip(nn.Module):
    """Clamp between two bounds, of which each may be left out."""

    def forward(self, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)


class PRelu(nn.Module):
    """``slope * x`` below zero, else ``x``; the slope broadcasts from the last axis on, as in NumPy."""

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        return torch.where(x < 0, slope * x, x)


class Swish(nn.Module):
    """``x * sigmoid(alpha * x)``."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.alpha * x)


class ThresholdedRelu(nn.Module):
    """``x`` above the threshold ``alpha``, else 0."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.threshold(x, self.alpha, 0.0)


# onnx2torch's takes a bound that is left out for one that is not constant.
@register("Clip", replace=(11, 12, 13))
def build_clip(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """The bounds are inputs since version 11."""
    return Clip()


# onnx2torch's takes a slope with one axis for one per channel, whatever the rank of the data.
@register("PRelu", replace=(7, 9, 16))
def build_prelu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """For every slope that broadcasts to the data."""
    return PRelu()


@register("Gelu", 20)
def build_gelu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """With erf or tanh."""
    approximate = node.attributes.get("approximate", "none")
    refuse_unless(approximate in ("none", "tanh"), f"Gelu: approximate {approximate}")
    return nn.GELU(approximate=approximate)


@register("Mish", 18, 22)
def build_mish(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """``x * tanh(softplus(x))``."""
    return nn.Mish()


@register("Swish", 24)
def build_swish(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """``alpha`` is the slope inside the sigmoid."""
    return Swish(node.attributes.get("alpha", 1.0))


@register("ThresholdedRelu", 10, 22)
def build_thresholded_relu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """The comparison is strict, as in torch."""
    return ThresholdedRelu(node.attributes.get("alpha", 1.0))
