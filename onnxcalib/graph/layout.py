"""A layer's weight as rows (groups, output channels of a group, inputs of a channel), for all operators alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from ..spec import LayerScheme
from .index import attribute_of


def to_rows(weight: np.ndarray, layer: LayerScheme) -> np.ndarray:
    """Weight as stored -> (groups, channels, K). A ConvTranspose gives one group: its channel axis spans all groups."""
    if layer.op == "Conv":
        return weight.reshape(layer.groups, weight.shape[0] // layer.groups, -1)
    if layer.op == "ConvTranspose":
        return np.moveaxis(weight, 1, 0).reshape(1, weight.shape[1], -1)
    return (weight if layer.axis == 0 else weight.T)[None]


def count_inputs(shape: Sequence[int], layer: LayerScheme) -> int:
    """K of ``to_rows`` for a weight of this shape, which is not read."""
    if layer.op == "Conv":
        return math.prod(shape[1:])
    if layer.op == "ConvTranspose":
        return shape[0] * math.prod(shape[2:])
    return shape[1 if layer.axis == 0 else 0]


def from_rows(rows: np.ndarray, layer: LayerScheme, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of ``to_rows`` for a weight stored in ``shape``."""
    if layer.op == "Conv":
        return rows.reshape(shape)
    if layer.op == "ConvTranspose":
        return np.moveaxis(rows.reshape(shape[1], shape[0], *shape[2:]), 0, 1)
    matrix: np.ndarray = rows[0]
    return matrix if layer.axis == 0 else matrix.T


def adds_pairs(op: str, shape: tuple[int, ...], groups: int) -> bool:
    """Whether onnxruntime's x86 kernel for a layer with an int8 weight of this shape adds products in pairs.

    A ConvTranspose has no integer kernel. A depthwise Conv has one of its own, which is exact.
    """
    return op != "ConvTranspose" and not (op == "Conv" and groups == shape[0] > 1 and shape[1] == 1)


def summing_order(layer: LayerScheme, shape: tuple[int, ...]) -> np.ndarray:
    """Inputs of a row of ``to_rows`` in the order in which the kernel adds them: for a Conv, channels last."""
    if layer.op == "ConvTranspose":
        return np.arange(math.prod(shape) // shape[1])
    if layer.op != "Conv":
        return np.arange(shape[1 if layer.axis == 0 else 0])
    order: np.ndarray = kernel_rows(np.arange(math.prod(shape[1:])).reshape(1, *shape[1:]))[0]
    return order


def kernel_rows(weight: np.ndarray, axis: int | None = None) -> np.ndarray:
    """A weight as (channels, inputs), in the order in which onnxruntime's x86 kernel adds the products.

    axis: of the output channels of a matrix, or of each of several matrices; None for a convolution, in whose rows the
    channels of one kernel element are neighbours.
    """
    if axis is None:
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if weight.ndim == 1:
        return weight[None]
    columns = np.moveaxis(weight, axis, -2)
    return columns.reshape(-1, columns.shape[-1])


def window_of(node: NodeProto, kernel: tuple[int, ...], spatial: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Kernel, strides, dilations and pads (begins, then ends) of a Conv on an input of ``spatial`` size."""
    rank = len(kernel)
    strides = tuple(attribute_of(node, "strides", [1] * rank))
    dilations = tuple(attribute_of(node, "dilations", [1] * rank))
    pads = tuple(attribute_of(node, "pads", [0] * 2 * rank))
    auto = attribute_of(node, "auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        pads = _same_pads(kernel, strides, dilations, spatial, upper=auto == b"SAME_UPPER")
    elif auto == b"VALID":
        pads = (0,) * 2 * rank
    return {"kernel": tuple(kernel), "strides": strides, "dilations": dilations, "pads": pads}


def transposed_window_of(
    node: NodeProto, kernel: tuple[int, ...], spatial: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """As ``window_of``: the convolution of stride 1 that gives what a ConvTranspose does, and its input's spacing."""
    rank = len(kernel)
    strides = tuple(attribute_of(node, "strides", [1] * rank))
    dilations = tuple(attribute_of(node, "dilations", [1] * rank))
    extra = attribute_of(node, "output_padding", [0] * rank)
    pads = list(attribute_of(node, "pads", [0] * 2 * rank))
    spans = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    auto = attribute_of(node, "auto_pad", b"NOTSET")
    wanted = attribute_of(node, "output_shape", None)
    if wanted is None and auto in (b"SAME_UPPER", b"SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(spatial, strides, strict=True)]
    for axis, size in enumerate([] if wanted is None else wanted[-rank:]):
        whole = strides[axis] * (spatial[axis] - 1) + extra[axis] + spans[axis] + 1
        removed = max(whole - size, 0)
        small, large = removed // 2, removed - removed // 2
        pads[axis], pads[axis + rank] = (small, large) if auto == b"SAME_UPPER" else (large, small)
    begins = [span - pad for span, pad in zip(spans, pads[:rank], strict=True)]
    ends = [span - pad + more for span, pad, more in zip(spans, pads[rank:], extra, strict=True)]
    if auto == b"VALID":
        begins, ends = spans, [span + more for span, more in zip(spans, extra, strict=True)]
    plain = {"kernel": tuple(kernel), "strides": (1,) * rank, "dilations": dilations, "pads": (*begins, *ends)}
    return {**plain, "spacing": strides}


def _same_pads(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], spatial: Sequence[int], *, upper: bool
) -> tuple[int, ...]:
    """Pads for ``spatial / strides`` elements of output; an odd number makes the ends larger if ``upper``."""
    begins, ends = [], []
    for k, s, d, size in zip(kernel, strides, dilations, spatial, strict=True):
        total = max((math.ceil(size / s) - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return (*begins, *ends)
