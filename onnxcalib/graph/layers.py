"""The weighted layers of a quantized graph: their integers, and the grids that they read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from .fusion import LAYERS, moves_values
from .index import Index, attribute_of, constant, is_op
from .integers import element_type, is_linear
from .layout import adds_pairs
from .plan import channel_axis

FOUR_BITS = (TensorProto.UINT4, TensorProto.INT4)
SIXTEEN_BITS = (TensorProto.UINT16, TensorProto.INT16)
UINT8_MAX = 2**8 - 1
SIGNED = (TensorProto.INT4, TensorProto.INT8, TensorProto.INT16)
# What may stand between a quantized tensor's first QuantizeLinear and a layer that reads it, a Clip of integers and a
# LeakyRelu of slope 1 apart.
LINEAR = ("DequantizeLinear", "QuantizeLinear")
CARRIERS = ("Cast", "Identity")
# Operators on integers: where weights stand among their inputs, and where the zero point of what these multiply is.
# None is for those that make these integers themselves, as uint8.
OPERATORS: dict[str, tuple[tuple[int, ...], int | None]] = {
    "QLinearConv": ((3,), 2),
    "QLinearMatMul": ((3,), 2),
    "QGemm": ((3,), 2),
    "ConvInteger": ((1,), 2),
    "MatMulInteger": ((1,), 2),
    "MatMulIntegerToFloat": ((1,), 4),
    "DynamicQuantizeMatMul": ((1,), None),
    "QAttention": ((1,), 6),
    "DynamicQuantizeLSTM": ((1, 2), None),
}


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer with a quantized constant weight.

    source: the float tensor that it reads or that is quantized for it; entry: the node that reads it so, the layer
    itself or a QuantizeLinear. highest: the largest integer that its kernel may read; grid: step and ends of its
    input's grid. stored: the weight's integers; signed: their type; integers: less their zero point; scale: of a shape
    that broadcasts to theirs; axis: that of the output channels.
    """

    name: str
    op: str
    source: str
    entry: str
    output: str
    stored: np.ndarray
    integers: np.ndarray
    signed: bool
    scale: np.ndarray
    axis: int
    weight_bits: int
    activation_bits: int
    highest: int
    grid: tuple[float, float, float] | None
    groups: int


@dataclass(frozen=True)
class Kernel:
    """What a layer's integer kernel multiplies on x86 without VNNI.

    weight: the constant that holds it; rows: its integers as stored, (channels, inputs), in the order in which pairs of
    products are added up; None where sums are exact. highest: the largest integer that they are multiplied by.
    """

    name: str
    weight: str
    rows: np.ndarray | None
    highest: int


def find_quantized_layers(model: ModelProto) -> tuple[QuantizedLayer, ...]:
    """The Conv, ConvTranspose, Gemm and MatMul nodes whose weight is a dequantized constant, in graph order."""
    index = Index(model.graph)
    return tuple(
        layer for node in model.graph.node if is_op(node, *LAYERS) and (layer := _read_layer(index, node)) is not None
    )


def find_kernels(model: ModelProto) -> tuple[Kernel, ...]:
    """Those of the quantized layers and of the operators on integers with a constant weight, in graph order.

    An LSTM has two.
    """
    index = Index(model.graph)
    found = []
    for node in model.graph.node:
        if is_op(node, *LAYERS) and (layer := _read_layer(index, node)) is not None:
            weight = index.producer[node.input[1]].input[0]
            bits, highest, _ = _last_grid(index, skip_movers(index, node.input[0]))
            rows = kernel_rows(replace(layer, activation_bits=bits))
            found.append(Kernel(layer.name, weight, rows, highest))
        elif node.op_type in OPERATORS:
            weights = [node.input[place] for place in OPERATORS[node.op_type][0]]
            found += [
                Kernel(node.name or node.output[0], weight, _operator_rows(index, node, weight), UINT8_MAX)
                for weight in weights
                if weight in index.initializers
            ]
    return tuple(found)


def skip_movers(index: Index, tensor: str) -> str:
    """The tensor whose values a layer's input holds, which onnxruntime moves as integers where it is dequantized."""
    node = index.producer.get(tensor)
    while node is not None and (is_op(node, "Identity") or moves_values(index, node)):
        tensor = node.input[0]
        node = index.producer.get(tensor)
    return tensor


def kernel_rows(layer: QuantizedLayer) -> np.ndarray | None:
    """The weight as (channels, inputs) in the order in which onnxruntime's x86 kernel adds up the products.

    None for layers with no such kernel, or one that is exact: those of a depthwise Conv and of unsigned weights. A
    ConvTranspose has none, nor have float inputs and those of 16 bits.
    """
    paired = adds_pairs(layer.op, layer.stored.shape, layer.groups)
    if not paired or not layer.signed or layer.activation_bits > 8:
        return None
    return _arrange(layer.stored) if layer.op == "Conv" else _transpose(layer.stored, layer.axis)


def _operator_rows(index: Index, node: NodeProto, name: str) -> np.ndarray | None:
    """As ``kernel_rows``; signed activations, which stay so here, have an exact kernel, and so has ConvInteger.

    ConvInteger multiplies weights by activations and not these by those.
    """
    weight, kind = _stored(index, name)
    zero_point = OPERATORS[node.op_type][1]
    signed = zero_point is not None and element_type(index, node, zero_point) in SIGNED
    if node.op_type == "ConvInteger" or kind not in SIGNED or signed:
        return None
    if node.op_type == "QLinearConv":
        return _arrange(weight) if adds_pairs("Conv", weight.shape, attribute_of(node, "group", 1)) else None
    return _transpose(weight, 0 if attribute_of(node, "transB", 0) else weight.ndim - 1)


def _arrange(weight: np.ndarray) -> np.ndarray:
    """A convolution's weight with channels last, so that the channels of one place are neighbours."""
    return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)


def _transpose(weight: np.ndarray, axis: int) -> np.ndarray:
    """The columns of a matrix, or of each of many, one row each; axis: that of the columns."""
    if weight.ndim == 1:
        return weight[None]
    columns = np.moveaxis(weight, axis, -2)
    return columns.reshape(-1, columns.shape[-1])


def _read_layer(index: Index, node: NodeProto) -> QuantizedLayer | None:
    dequantize = index.producer.get(node.input[1])
    if dequantize is None or not is_linear(dequantize, "DequantizeLinear"):
        return None
    weight, kind = _stored(index, dequantize.input[0])
    scale = _spread(index, dequantize, 1, weight)
    if weight is None or scale is None:
        return None
    zero_point = _spread(index, dequantize, 2, weight)
    entry = next((n for n in reversed(list(_trace(index, node.input[0]))) if is_linear(n, "QuantizeLinear")), node)
    bits, highest, grid = _last_grid(index, node.input[0])
    return QuantizedLayer(
        name=node.name or node.output[0],
        op=node.op_type,
        source=entry.input[0],
        entry=entry.name,
        output=node.output[0],
        stored=weight,
        integers=weight.astype(np.int32) - (0 if zero_point is None else zero_point.astype(np.int32)),
        signed=kind in SIGNED,
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


def _spread(index: Index, dequantize: NodeProto, place: int, weight: np.ndarray | None) -> np.ndarray | None:
    """Scale or zero point of a weight, its input number ``place``, in a shape that broadcasts to the weight's."""
    value = constant(index, dequantize.input[place]) if len(dequantize.input) > place else None
    if value is None or weight is None or value.size == 1:
        return value if value is None else value.reshape(())
    axis = attribute_of(dequantize, "axis", 1) % weight.ndim
    if value.ndim == 1:
        return value.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    block = attribute_of(dequantize, "block_size", 0)
    return np.repeat(value, block, axis).take(range(weight.shape[axis]), axis)


def _trace(index: Index, tensor: str) -> Iterator[NodeProto]:
    """The nodes that carry a layer's input on grids, from the layer back."""
    node = index.producer.get(tensor)
    while node is not None and _carries(index, node):
        yield node
        node = index.producer.get(node.input[0])


def _carries(index: Index, node: NodeProto) -> bool:
    if is_op(node, "LeakyRelu"):
        return _is_mark(node)
    if is_linear(node, *LINEAR):
        return True
    return is_op(node, *CARRIERS) or (is_op(node, "Clip") and any(e is not None for e in _clip_ends(index, node)))


def _is_mark(node: NodeProto) -> bool:
    """Whether this is the LeakyRelu that ``emit`` writes where it narrows: the identity."""
    return is_op(node, "LeakyRelu") and attribute_of(node, "alpha", 0.01) == 1


def _clip_ends(index: Index, node: NodeProto) -> list[int | None]:
    """Both ends of a Clip of integers, None for one that it has not, or that is none of an integer."""
    names = [*node.input[1:3], "", ""][:2]
    ends = [constant(index, name) for name in names]
    return [int(end) if end is not None and end.dtype.kind in "iu" else None for end in ends]


def _last_grid(index: Index, tensor: str) -> tuple[int, int, tuple[float, float, float] | None]:
    """Bits of the grid that a layer reads its input on, the largest integer there, its step and its ends in floats.

    Float input is 32 bits, 0 and None; so is the grid where its scale is computed.
    """
    clips = []
    for node in _trace(index, tensor):
        if is_op(node, "Clip"):
            clips.append(_clip_ends(index, node))
        if is_linear(node, "QuantizeLinear"):
            return _read_grid(index, node, clips)
    return 32, 0, None


def _read_grid(
    index: Index, node: NodeProto, clips: list[list[int | None]]
) -> tuple[int, int, tuple[float, float, float] | None]:
    """As ``_last_grid``, of a QuantizeLinear behind which integers are clipped.

    onnxruntime moves signed integers up to unsigned ones, so that the largest is the width of their grid.
    """
    scale = constant(index, node.input[1])
    given = constant(index, node.input[2]) if len(node.input) > 2 else None
    zero_point = 0 if given is None else int(given.reshape(-1)[0])
    kind = element_type(index, node)
    levels = 2 ** (4 if kind in FOUR_BITS else 16 if kind in SIXTEEN_BITS else 8)
    low, high = (-levels // 2, levels // 2 - 1) if kind in SIGNED else (0, levels - 1)
    low = max([low, *(end for end, _ in clips if end is not None)])
    high = min([high, *(end for _, end in clips if end is not None)])
    if _narrows(index, node, zero_point):
        low = zero_point
    bits = next(bits for bits in (4, 8, 16) if high - low < 2**bits)
    highest = high - low if kind in SIGNED else high
    if scale is None or scale.size != 1:
        return bits, highest, None
    step = float(scale.reshape(-1)[0])
    return bits, highest, (step, (low - zero_point) * step, (high - zero_point) * step)


def _narrows(index: Index, node: NodeProto, zero_point: int) -> bool:
    """Whether a QuantizeLinear puts a tensor on 16 levels at the top of uint8, as ``emit`` writes it."""
    before = index.producer.get(node.input[0])
    return before is not None and _is_mark(before) and zero_point == 255 - 15
