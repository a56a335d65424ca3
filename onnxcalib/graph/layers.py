"""The weighted layers of a quantized graph: their integers, and the grids that they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from .fusion import LAYERS
from .index import Index, attribute_of, constant, is_op
from .plan import channel_axis

FOUR_BITS = (TensorProto.UINT4, TensorProto.INT4)
# What may stand between a quantized tensor's first QuantizeLinear and a layer that reads it.
CARRIERS = ("DequantizeLinear", "QuantizeLinear", "Clip", "Cast", "LeakyRelu", "Identity")


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer with a quantized constant weight.

    source: the float tensor that it reads or that is quantized for it; entry: the node that reads it so, the layer
    itself or a QuantizeLinear. highest: the largest integer that it may read; grid: step and ends of its input's grid.
    integers and scale: of the weight as stored, axis: that of its output channels.
    """

    name: str
    op: str
    source: str
    entry: str
    output: str
    integers: np.ndarray
    scale: np.ndarray
    axis: int
    weight_bits: int
    activation_bits: int
    highest: int
    grid: tuple[float, float, float] | None
    groups: int


def find_quantized_layers(model: ModelProto) -> tuple[QuantizedLayer, ...]:
    """The Conv, ConvTranspose, Gemm and MatMul nodes whose weight is a dequantized constant, in graph order."""
    index = Index(model.graph)
    return tuple(
        layer for node in model.graph.node if is_op(node, *LAYERS) and (layer := _read_layer(index, node)) is not None
    )


def kernel_rows(layer: QuantizedLayer) -> np.ndarray | None:
    """The weight as (channels, inputs) in the order in which onnxruntime's x86 kernel adds up the products.

    None for layers with no such kernel: a depthwise Conv has one of its own, which is exact, a ConvTranspose none.
    """
    if layer.op == "ConvTranspose" or (layer.op == "Conv" and layer.groups == len(layer.integers) > 1):
        return None
    if layer.op == "Conv":  # channels last, so that the channels of one place are neighbours
        return np.moveaxis(layer.integers, 1, -1).reshape(len(layer.integers), -1)
    return np.moveaxis(layer.integers, layer.axis, 0).reshape(layer.integers.shape[layer.axis], -1)


def _read_layer(index: Index, node: NodeProto) -> QuantizedLayer | None:
    dequantize = index.producer.get(node.input[1])
    if dequantize is None or not is_op(dequantize, "DequantizeLinear"):
        return None
    weight, kind = _stored(index, dequantize.input[0])
    scale = constant(index, dequantize.input[1])
    if weight is None or scale is None:
        return None
    entry = next((n for n in reversed(list(_trace(index, node.input[0]))) if is_op(n, "QuantizeLinear")), node)
    bits, highest, grid = _last_grid(index, node.input[0])
    return QuantizedLayer(
        name=node.name,
        op=node.op_type,
        source=entry.input[0],
        entry=entry.name,
        output=node.output[0],
        integers=weight.astype(np.int32),
        scale=scale.astype(np.float32),
        axis=channel_axis(node) if weight.ndim == 2 or node.op_type != "MatMul" else weight.ndim - 1,
        weight_bits=4 if kind in FOUR_BITS else 8,
        activation_bits=bits,
        highest=highest,
        grid=grid,
        groups=attribute_of(node, "group", 1),
    )


def _stored(index: Index, tensor: str) -> tuple[np.ndarray | None, int]:
    """Integers of a constant and their type, through the Cast that 4-bit ones are widened by."""
    producer = index.producer.get(tensor)
    if producer is not None and is_op(producer, "Cast"):
        tensor = producer.input[0]
    found = index.initializers.get(tensor)
    return (None, 0) if found is None else (constant(index, tensor), found.data_type)


def _trace(index: Index, tensor: str) -> Iterator[NodeProto]:
    """The nodes that carry a layer's input on grids, from the layer back."""
    node = index.producer.get(tensor)
    while node is not None and is_op(node, *CARRIERS):
        yield node
        node = index.producer.get(node.input[0])


def _last_grid(index: Index, tensor: str) -> tuple[int, int, tuple[float, float, float] | None]:
    """Bits of the grid that a layer reads its input on, the largest integer on it, its step and its ends in floats.

    Float input is 32 bits, 0 and None; so is the grid where its scale is computed.
    """
    top = None
    for node in _trace(index, tensor):
        if is_op(node, "Clip") and top is None:
            end = constant(index, node.input[2]) if len(node.input) > 2 and node.input[2] else None
            top = int(end) if end is not None and end.dtype.kind in "iu" else None
        if is_op(node, "QuantizeLinear"):
            return _read_grid(index, node, top)
    return 32, 0, None


def _read_grid(index: Index, node: NodeProto, top: int | None) -> tuple[int, int, tuple[float, float, float] | None]:
    """As ``_last_grid``, of a QuantizeLinear behind which integers are clipped to ``top``."""
    scale = constant(index, node.input[1])
    given = index.initializers.get(node.input[2]) if len(node.input) > 2 else None
    zero_point = 0 if given is None else int(constant(index, given.name).reshape(-1)[0])
    signed = given is not None and given.data_type in (TensorProto.INT8, TensorProto.INT4)
    levels = 16 if given is not None and given.data_type in FOUR_BITS else 256
    low, high = (-levels // 2, levels // 2 - 1) if signed else (0, levels - 1)
    if top is not None:
        high = min(high, top)
    elif _narrows(index, node, zero_point):
        low = zero_point
    bits = 4 if high - low < 16 else 8
    if scale is None or scale.size != 1:
        return bits, high, None
    step = float(scale.reshape(-1)[0])
    return bits, high, (step, (low - zero_point) * step, (high - zero_point) * step)


def _narrows(index: Index, node: NodeProto, zero_point: int) -> bool:
    """Whether a QuantizeLinear puts a tensor on 16 levels at the top of uint8, as ``emit`` writes it."""
    before = index.producer.get(node.input[0])
    marked = before is not None and is_op(before, "LeakyRelu") and attribute_of(before, "alpha", 0.01) == 1
    return marked and zero_point == 255 - 15
