"""Normalizations, and Dropout, as they are at inference, also while the module is in train mode.

onnx2torch's need the input's shape, depend on train mode, and some split the one output of a node along its batch axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, has_one_output, refuse_unless, register

_EPSILON = 1e-5  # ONNX's default in every operator
_NO_DIVISION_BY_ZERO = 1e-9  # in the definition of MeanVarianceNormalization


class BatchNorm(nn.Module):
    """Normalize each channel with stored statistics."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, bias, training=False, eps=self.epsilon)


class InstanceNorm(nn.Module):
    """Normalize each channel of each sample over the spatial axes."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        return F.instance_norm(x, weight=scale, bias=bias, eps=self.epsilon)


class LayerNorm(nn.Module):
    """Normalize over ``axis`` and all axes behind it."""

    def __init__(self, axis: int, epsilon: float) -> None:
        super().__init__()
        self.axis, self.epsilon = axis, epsilon

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        normal = F.layer_norm(x, x.shape[self.axis :], eps=self.epsilon) * scale
        return normal if bias is None else normal + bias


class GroupNorm(nn.Module):
    """Normalize over groups of channels; scale and bias are per group (version 18) or per channel (21)."""

    def __init__(self, groups: int, epsilon: float) -> None:
        super().__init__()
        self.groups, self.epsilon = groups, epsilon

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        repeats = x.shape[1] // scale.numel()
        scale, bias = scale.repeat_interleave(repeats), bias.repeat_interleave(repeats)
        return F.group_norm(x, self.groups, scale, bias, self.epsilon)


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over ``axis`` and all axes behind it."""

    def __init__(self, axis: int, epsilon: float) -> None:
        super().__init__()
        self.axis, self.epsilon = axis, epsilon

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        axes = tuple(range(self.axis % x.dim(), x.dim()))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + self.epsilon) * scale


class LpNorm(nn.Module):
    """``x / |x|_p`` along an axis, and 0 where the norm is 0."""

    def __init__(self, axis: int, p: int) -> None:
        super().__init__()
        self.axis, self.p = axis, p

    def forward(self, x: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(x, self.p, self.axis, keepdim=True)
        return torch.where(size == 0, torch.zeros_like(x), x / torch.where(size == 0, torch.ones_like(size), size))


class MeanVarianceNorm(nn.Module):
    """``(x - mean) / (deviation + 1e-9)`` over the given axes."""

    def __init__(self, axes: list[int]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.axes, keepdim=True)
        return centred / (centred.square().mean(self.axes, keepdim=True).sqrt() + _NO_DIVISION_BY_ZERO)


@register("BatchNormalization", 7, replace=(9, 14, 15))
def build_batch_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Refuses statistics of each element (``spatial`` 0, version 7), and training (14 and later)."""
    refuse_unless(has_one_output(node), "BatchNormalization: more than one output is used")
    refuse_unless(not node.attributes.get("training_mode", 0), "BatchNormalization: training_mode 1")
    refuse_unless(bool(node.attributes.get("spatial", 1)), "BatchNormalization: spatial 0")
    return BatchNorm(node.attributes.get("epsilon", _EPSILON))


@register("InstanceNormalization", 22, replace=(6,))
def build_instance_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Scale and bias are per channel."""
    return InstanceNorm(node.attributes.get("epsilon", _EPSILON))


@register("LayerNormalization", replace=(17,))
def build_layer_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Refuses mean and deviation as outputs."""
    refuse_unless(has_one_output(node), "LayerNormalization: more than one output is used")
    return LayerNorm(node.attributes.get("axis", -1), node.attributes.get("epsilon", _EPSILON))


@register("GroupNormalization", 18, 21)
def build_group_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Scale and bias are per group in version 18, per channel in 21."""
    return GroupNorm(node.attributes["num_groups"], node.attributes.get("epsilon", _EPSILON))


@register("RMSNormalization", 23)
def build_rms_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """The scale broadcasts to the input."""
    return RMSNorm(node.attributes.get("axis", -1), node.attributes.get("epsilon", _EPSILON))


@register("LpNormalization", 1, 22)
def build_lp_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """p is 1 or 2."""
    return LpNorm(node.attributes.get("axis", -1), node.attributes.get("p", 2))


@register("MeanVarianceNormalization", 9, 13)
def build_mean_variance_norm(node: OnnxNode, graph: OnnxGraph) -> nn.Module:
    """Over all axes but the channels' by default."""
    return MeanVarianceNorm(node.attributes.get("axes", [0, 2, 3]))


@register("Dropout", 7, 22, replace=(10, 12, 13))
def build_dropout(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """The identity; refuses the mask as an output."""
    refuse_unless(has_one_output(node), "Dropout: its mask is used")
    refuse_unless(not any(node.input_values[2:]), "Dropout: training_mode is given")
    return Converted(nn.Identity(), node.input_values[:1])
