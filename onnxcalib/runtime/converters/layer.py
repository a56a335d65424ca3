"""Conv and ConvTranspose.

Each becomes a torch layer whose weight and bias are parameters. Where ONNX leaves the bias out it is zero, so that it
can be learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .registry import Converted, OnnxGraph, OnnxNode, initializer, refuse_unless, register
from .window import WindowPad, pad_spatial, read_window

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
TransposedConv = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
# By the number of spatial axes.
_CONVS: dict[int, Callable[..., Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Callable[..., TransposedConv]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class Crop(nn.Module):
    """Remove margins from the spatial axes."""

    def __init__(self, margins: list[tuple[int, int]]) -> None:
        super().__init__()
        self.margins = [(-before, -after) for before, after in margins]

    def forward(self, x: Tensor) -> Tensor:
        return pad_spatial(x, self.margins, 0.0)


class CropTo(nn.Module):
    """A transposed convolution without padding, cropped to ``sizes``, or to the input's size times the stride.

    Where an odd number of elements is removed from an axis, the smaller half is at the begin if ``smaller_first``.
    """

    def __init__(self, layer: TransposedConv, sizes: list[int] | None, *, smaller_first: bool) -> None:
        super().__init__()
        self.layer, self.sizes, self.smaller_first = layer, sizes, smaller_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        strided = [size * stride for size, stride in zip(x.shape[2:], self.layer.stride, strict=True)]
        margins = []
        for size, wanted in zip(y.shape[2:], self.sizes or strided, strict=True):
            refuse_unless(size >= wanted, f"ConvTranspose: {wanted} elements asked for, of {size}")
            small, large = (size - wanted) // 2, size - wanted - (size - wanted) // 2
            margins.append((-small, -large) if self.smaller_first else (-large, -small))
        return pad_spatial(y, margins, 0.0)


# onnx2torch's leaves the bias out where ONNX does, and refuses padding that depends on the input's size.
@register("Conv", 22, replace=(1, 11))
def build_conv(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """``nn.ConvNd``, behind a padding module where the padding is asymmetric."""
    weight, bias = read_weight(graph, node), initializer(graph, node, 2)
    window, groups = read_window(node, weight.shape[2:]), node.attributes.get("group", 1)
    refuse_unless(window.rank in _CONVS, f"Conv: {window.rank} spatial axes")
    layer = _CONVS[window.rank](
        weight.shape[1] * groups,
        weight.shape[0],
        window.kernel,
        stride=window.strides,
        padding=window.pads[: window.rank] if window.is_symmetric else 0,
        dilation=window.dilations,
        groups=groups,
    )
    fill(layer, weight, bias)
    module: nn.Module = layer if window.is_symmetric else nn.Sequential(WindowPad(window), layer)
    return Converted(module, node.input_values[:1])


@register("ConvTranspose", 22, replace=(1, 11))
def build_conv_transpose(node: OnnxNode, graph: OnnxGraph) -> Converted:
    """``nn.ConvTransposeNd``, in front of a crop where the padding is asymmetric or an output size is given."""
    weight, bias = read_weight(graph, node), initializer(graph, node, 2)
    window, groups = read_window(node, weight.shape[2:]), node.attributes.get("group", 1)
    refuse_unless(window.rank in _TRANSPOSED, f"ConvTranspose: {window.rank} spatial axes")
    sizes = node.attributes.get("output_shape")
    crops = sizes is not None or not window.is_fixed
    layer = _TRANSPOSED[window.rank](
        weight.shape[0],
        weight.shape[1] * groups,
        window.kernel,
        stride=window.strides,
        padding=window.pads[: window.rank] if window.is_symmetric and not crops else 0,
        output_padding=tuple(node.attributes.get("output_padding", [0] * window.rank)),
        groups=groups,
        dilation=window.dilations,
    )
    fill(layer, weight, bias)
    module: nn.Module = layer
    if crops:
        module = CropTo(layer, sizes, smaller_first=window.auto_pad == "SAME_UPPER")
    elif not window.is_symmetric:
        module = nn.Sequential(layer, Crop(window.margins(())))
    return Converted(module, node.input_values[:1])


def read_weight(graph: OnnxGraph, node: OnnxNode) -> Tensor:
    """The second input; raises NotImplementedError where it is not a floating-point constant."""
    weight = initializer(graph, node, 1)
    assert weight is not None  # ONNX requires it
    refuse_unless(weight.is_floating_point(), f"{node.operation_type}: weight of type {weight.dtype}")
    return weight


def fill(layer: Conv | TransposedConv | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    """Give the layer parameters with copies of these values; a bias of None is zero."""
    if bias is None:
        assert layer.bias is not None
        bias = torch.zeros(layer.bias.shape, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
    layer.bias = nn.Parameter(bias.clone(memory_format=torch.contiguous_format))
