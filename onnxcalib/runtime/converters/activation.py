"""Activations that onnx2torch lacks or computes otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import OnnxGraph, OnnxNode, refuse_unless, register


class Clip(nn.Module):
    """Between two bounds, either of which may be left out."""

    def forward(self, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)


class PRelu(nn.Module):
    """A slope that broadcasts from the right, below zero."""

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
    """``x`` above the threshold, else 0."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return F.threshold(x, self.alpha, 0.0)


# onnx2torch's own takes an empty name for a bound that is not constant.
@register("Clip", replace=(11, 12, 13))
def build_clip(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """The bounds are inputs since 11."""
    return Clip()


# onnx2torch's own takes a slope of one axis for one per channel, whatever the rank of the data.
@register("PRelu", replace=(7, 9, 16))
def build_prelu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Of any slope that broadcasts to the data."""
    return PRelu()


@register("Gelu", 20)
def build_gelu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """By erf or tanh."""
    approximate = node.attributes.get("approximate", "none")
    refuse_unless(approximate in ("none", "tanh"), f"Gelu: approximate {approximate}")
    return nn.GELU(approximate=approximate)


@register("Mish", 18, 22)
def build_mish(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """``x * tanh(softplus(x))``."""
    return nn.Mish()


@register("Swish", 24)
def build_swish(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """With its slope inside the sigmoid."""
    return Swish(node.attributes.get("alpha", 1.0))


@register("ThresholdedRelu", 10, 22)
def build_thresholded_relu(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """With a strict comparison, as in torch."""
    return ThresholdedRelu(node.attributes.get("alpha", 1.0))
