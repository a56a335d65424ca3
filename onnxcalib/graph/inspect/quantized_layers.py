"""The layers and products of a quantized graph: integers of weights, and the grids on which activations are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ..dynamic import find_rows
from ..dynamic_lstm import is_dynamic, scales_of
from ..index import Index, attribute_of, constant, is_op
from ..layers import channel_axis
from ..ops import DEQUANTIZE, DYNAMIC_QUANTIZE, INTEGER_PRODUCT, LAYERS, LINEAR_OPS, QUANTIZE, RECURRENT
from ..packed import GROUP_INDEX, Packing, is_packed, read_packing, read_zero_points
from ..recurrent import INPUT, STATES, WEIGHT, input_of
from ..scaled_weights import find_scale, find_stored
from ..values import read_values
from ..weight_nodes import Stored, trace_weight
from .integers import element_type, is_linear

FOUR_BITS: tuple[int, ...] = (TensorProto.UINT4, TensorProto.INT4)
WEIGHT_BITS: dict[int, int] = {
    **dict.fromkeys(FOUR_BITS, 4),
    **dict.fromkeys((TensorProto.UINT2, TensorProto.INT2), 2),
}
SIXTEEN_BITS: tuple[int, ...] = (TensorProto.UINT16, TensorProto.INT16)
SIGNED: tuple[int, ...] = (TensorProto.INT4, TensorProto.INT8, TensorProto.INT16)
FLOAT_BITS = 32  # of an activation without a grid
# Operators between quantization and layer that leave the integers as they are.
CARRIERS = ("Cast", "Identity")


@dataclass(frozen=True)
class Operand:
    """An activation that a node multiplies.

    source: the float tensor that the node reads or that is quantized for it. entries: the nodes that read ``source``,
    the node itself, a QuantizeLinear, or what divides it by the peaks of its rows. grid: scale and ends of its grid, as
    floats; None too where each row has another.
    """

    source: str
    entries: tuple[str, ...]
    bits: int
    grid: tuple[float, float, float] | None


@dataclass(frozen=True)
class QuantizedProduct:
    """A MatMul of two activations, at least one of which is quantized for it."""

    name: str
    op: str
    operands: tuple[Operand, ...]
    output: str


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer with a quantized constant weight.

    source, entries, activation_bits, grid: as those of an Operand. weight: its integers, which are read when they are
    asked for. packing: how a MatMulNBits has them; None for others. scale: of a shape that broadcasts to the weight's,
    as the zero point is. axis: of the output channels. others: what a recurrent layer reads beside its input, in float.
    steps, added: the layer multiplies ``steps q + added`` where the weight has q, as half steps are written.
    """

    name: str
    op: str
    source: str
    entries: tuple[str, ...]
    output: str
    weight: TensorProto
    zero_point: np.ndarray | None
    scale: np.ndarray
    axis: int
    weight_bits: int
    activation_bits: int
    grid: tuple[float, float, float] | None
    packing: Packing | None = None
    others: tuple[str, ...] = ()
    steps: int = 1
    added: np.ndarray | None = None

    @property
    def stored(self) -> np.ndarray:
        """The integers that the layer multiplies, read anew."""
        values = read_values(self.weight)
        if self.added is not None:
            values = (values.astype(np.int32) * self.steps + self.added).astype(np.int8)
        return values if self.packing is None else self.packing.unpack(values)

    @property
    def integers(self) -> np.ndarray:
        """The weight's integers less their zero point."""
        return self.stored.astype(np.int32) - (0 if self.zero_point is None else self.zero_point.astype(np.int32))

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        return tuple(self.weight.dims) if self.packing is None else (self.packing.inputs, self.packing.outputs)

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The layer's input, and what it reads beside that."""
        others = (Operand(name, self.entries, FLOAT_BITS, None) for name in self.others)
        return Operand(self.source, self.entries, self.activation_bits, self.grid), *others


def find_quantized_layers(model: ModelProto) -> tuple[QuantizedLayer, ...]:
    """The layers whose weight is stored as integers, in graph order.

    They are the Conv, ConvTranspose, Gemm and MatMul nodes whose weight is a dequantized constant or integers times
    scales, each MatMulNBits of a constant, each DynamicQuantizeLSTM, and each recurrent layer of integers times scales,
    of whose weights the one of its input is read, and each MatMulInteger of a constant and of what a
    DynamicQuantizeLinear gives, as far as the product with both scales.
    """
    return find_layers(model.graph, Index(model.graph))


def find_layers(graph: GraphProto, index: Index) -> tuple[QuantizedLayer, ...]:
    """As ``find_quantized_layers``, of a graph or a body."""
    found = (_read(index, node) for node in graph.node)
    return tuple(layer for layer in found if layer is not None)


def _read(index: Index, node: NodeProto) -> QuantizedLayer | None:
    if is_packed(node):
        return _read_packed(index, node)
    if is_dynamic(node) or is_op(node, *RECURRENT):
        return _read_recurrent(index, node)
    return _read_dynamic(index, node) if is_op(node, INTEGER_PRODUCT) else _read_layer(index, node)


def find_quantized_products(model: ModelProto) -> tuple[QuantizedProduct, ...]:
    """The MatMuls of two tensors that are computed, at least one of them quantized, in graph order."""
    index = Index(model.graph)
    fixed = set(index.initializers)
    found = []
    for node in model.graph.node:
        if fixed.issuperset(node.input):
            fixed.update(node.output)
        if is_op(node, "MatMul") and fixed.isdisjoint(node.input):
            operands = tuple(_read_operand(index, node, name) for name in node.input)
            if any(operand.entries != (node.name,) for operand in operands):
                found.append(QuantizedProduct(node.name, node.op_type, operands, node.output[0]))
    return tuple(found)


def _read_operand(index: Index, node: NodeProto, tensor: str) -> Operand:
    entry = next((n for n in reversed(list(_trace(index, tensor))) if is_linear(n, QUANTIZE)), None)
    if entry is None:
        return Operand(tensor, (node.name,), FLOAT_BITS, None)
    return Operand(entry.input[0], (entry.name,), *read_input_grid(index, tensor))


def _read_dynamic(index: Index, node: NodeProto) -> QuantizedLayer | None:
    """A MatMulInteger, whose products are cast to float and multiplied by the scales of both operands."""
    entry, stored = index.producer.get(node.input[0]), trace_weight(index, node.input[1])
    if entry is None or not is_op(entry, DYNAMIC_QUANTIZE) or stored is None or stored.added is not None:
        return None
    weight = index.initializers[stored.tensor]
    if len(weight.dims) != 2:
        return None
    cast, product = _read_alone(index, node.output[0], "Cast"), None
    if cast is not None:
        product = _read_alone(index, cast.output[0], "Mul")
    if cast is None or product is None:
        return None
    both = index.producer.get(next((t for t in product.input if t != cast.output[0]), ""))
    if both is None or not is_op(both, "Mul") or entry.output[1] not in both.input:
        return None
    scale = constant(index, next((t for t in both.input if t != entry.output[1]), ""))
    zero_point = constant(index, node.input[3]) if len(node.input) > 3 and node.input[3] else None
    if scale is None or scale.size not in (1, weight.dims[1]) or (zero_point is None and any(node.input[3:])):
        return None
    return QuantizedLayer(
        name=node.name or node.output[0],
        op=node.op_type,
        source=entry.input[0],
        entries=(entry.name,),
        output=product.output[0],
        weight=weight,
        zero_point=zero_point,
        scale=scale.astype(np.float32).reshape(-1) if scale.size > 1 else scale.astype(np.float32).reshape(()),
        axis=1,
        weight_bits=4 if weight.data_type in FOUR_BITS else 8,
        activation_bits=8,
        grid=None,
    )


def _read_recurrent(index: Index, node: NodeProto) -> QuantizedLayer | None:
    name, dynamic = input_of(node, WEIGHT), is_dynamic(node)
    weight = index.initializers.get(name) if dynamic else find_stored(index, name)
    scale = None if weight is None or dynamic else find_scale(index, name)
    grid = scales_of(index, node, weight) if dynamic and weight is not None else None if scale is None else [scale]
    if weight is None or grid is None:
        return None
    output = next(filter(None, node.output))
    read = [name for number, name in enumerate(node.input) if name and number not in (INPUT, WEIGHT, STATES)]
    return QuantizedLayer(
        name=node.name or output,
        op=node.op_type,
        source=node.input[INPUT],
        entries=(node.name,),
        output=output,
        weight=weight,
        zero_point=grid[1] if dynamic else None,
        scale=grid[0].astype(np.float32),
        axis=2 if dynamic else 1,
        weight_bits=WEIGHT_BITS.get(weight.data_type, 8),
        activation_bits=8 if dynamic else FLOAT_BITS,
        grid=None,
        others=tuple(name for name in read if constant(index, name) is None),
    )


def _read_alone(index: Index, tensor: str, op: str) -> NodeProto | None:
    """The one node that reads a tensor, if it is of this operator."""
    readers = index.readers(tensor)
    return readers[0] if len(readers) == 1 and is_op(readers[0], op) and tensor not in index.outputs else None


def _read_layer(index: Index, node: NodeProto) -> QuantizedLayer | None:
    if not is_op(node, *LAYERS):
        return None
    weight = _read_weight(index, node.input[1])
    if weight is None:
        return None
    stored, scale, zero_point = weight
    tensor = index.initializers[stored.tensor]
    shape = tuple(tensor.dims)
    operand, output = _read_rows(index, node, _read_operand(index, node, node.input[0]))
    return QuantizedLayer(
        name=node.name or node.output[0],
        op=node.op_type,
        source=operand.source,
        entries=operand.entries,
        output=output,
        weight=tensor,
        zero_point=zero_point,
        scale=scale.astype(np.float32),
        axis=channel_axis(node) if len(shape) == 2 or node.op_type != "MatMul" else len(shape) - 1,
        weight_bits=WEIGHT_BITS.get(tensor.data_type, 8),
        activation_bits=operand.bits,
        grid=operand.grid,
        steps=stored.steps,
        added=stored.added,
    )


def _read_weight(index: Index, name: str) -> tuple[Stored, np.ndarray, np.ndarray | None] | None:
    """The integers of a weight, its scale and its zero point, both of which broadcast to them."""
    if (tensor := find_stored(index, name)) is not None:
        scale = find_scale(index, name)
        return None if scale is None else (Stored(tensor.name), scale, None)
    dequantize = index.producer.get(name)
    stored = None
    if dequantize is not None and is_linear(dequantize, DEQUANTIZE):
        stored = trace_weight(index, dequantize.input[0])
    if dequantize is None or stored is None:
        return None
    shape = tuple(index.initializers[stored.tensor].dims)
    scale, zero_point = (_broadcastable(index, dequantize, number, shape) for number in (1, 2))
    if scale is None or (zero_point is None and any(dequantize.input[2:])):
        return None
    return stored, scale, zero_point


def _read_rows(index: Index, node: NodeProto, operand: Operand) -> tuple[Operand, str]:
    """The input and the output of a layer, in front of what divides its rows by their peaks and behind the Mul by them.

    A layer without these has them as they are.
    """
    rows, product = find_rows(index, operand.source), _read_alone(index, node.output[0], "Mul")
    if rows is None or product is None or rows.peaks not in product.input:
        return operand, node.output[0]
    return replace(operand, source=rows.tensor, entries=rows.nodes, grid=None), product.output[0]


def _read_packed(index: Index, node: NodeProto) -> QuantizedLayer | None:
    if any(node.input[GROUP_INDEX : GROUP_INDEX + 1]):  # blocks of inputs in an order of their own
        return None
    packing = read_packing(node) if len(node.input) > 2 else None
    tensor, scale = (
        (None, None) if packing is None else (_find_bytes(index, node.input[1]), constant(index, node.input[2]))
    )
    if packing is None or tensor is None or scale is None or scale.size != packing.outputs * packing.blocks:
        return None
    name = node.input[3] if len(node.input) > 3 else ""
    zeros = read_zero_points(packing, constant(index, name) if name else None, given=bool(name))
    if tensor.data_type != TensorProto.UINT8 or math.prod(tensor.dims) != math.prod(packing.shape) or zeros is None:
        return None
    return QuantizedLayer(
        name=node.name or node.output[0],
        op="MatMul",  # which it multiplies as
        source=node.input[0],
        entries=(node.name,),
        output=node.output[0],
        weight=tensor,
        zero_point=zeros,
        scale=packing.spread(scale.reshape(packing.shape[:2])).astype(np.float32),
        axis=1,
        weight_bits=packing.bits,
        activation_bits=FLOAT_BITS,
        grid=None,
        packing=packing,
    )


def _find_bytes(index: Index, name: str) -> TensorProto | None:
    """The constant that a MatMulNBits reads, directly or through the Reshape of a table that is looked up too."""
    producer = index.producer.get(name)
    return index.initializers.get(producer.input[0] if producer is not None and is_op(producer, "Reshape") else name)


def _broadcastable(index: Index, dequantize: NodeProto, number: int, shape: tuple[int, ...]) -> np.ndarray | None:
    """A weight's scale or zero point, the input of this number, in a shape that broadcasts to the weight's."""
    value = constant(index, dequantize.input[number]) if len(dequantize.input) > number else None
    if value is None or value.size == 1:
        return value if value is None else value.reshape(())
    axis = attribute_of(dequantize, "axis", 1) % len(shape)
    if value.ndim == 1:
        return value.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    block = attribute_of(dequantize, "block_size", 0)
    return np.repeat(value, block, axis).take(range(shape[axis]), axis)


def _trace(index: Index, tensor: str) -> Iterator[NodeProto]:
    """The nodes that quantize a layer's input and pass its integers on, from the layer back."""
    node = index.producer.get(tensor)
    while node is not None and _carries(index, node):
        yield node
        node = index.producer.get(node.input[0])


def _carries(index: Index, node: NodeProto) -> bool:
    if is_op(node, "LeakyRelu"):
        return _is_identity(node)
    if is_linear(node, *LINEAR_OPS):
        return True
    return is_op(node, *CARRIERS) or (is_op(node, "Clip") and any(e is not None for e in clip_ends(index, node)))


def _is_identity(node: NodeProto) -> bool:
    """Whether this is the LeakyRelu of slope 1 that ``emit`` writes where it requantizes."""
    return is_op(node, "LeakyRelu") and attribute_of(node, "alpha", 0.01) == 1


def clip_ends(index: Index, node: NodeProto) -> list[int | None]:
    """Both ends of a Clip of integers; None for an end that is missing, computed or no integer."""
    names = [*node.input[1:3], "", ""][:2]
    ends = [constant(index, name) for name in names]
    return [int(end) if end is not None and end.dtype.kind in "iu" else None for end in ends]


def read_input_grid(index: Index, tensor: str) -> tuple[int, tuple[float, float, float] | None]:
    """Bits of the grid on which a layer reads its input, and the grid's scale and ends as floats.

    Float input has 32 bits and no grid. The grid is None too where its scale is computed.
    """
    clips = []
    for node in _trace(index, tensor):
        if is_op(node, "Clip"):
            clips.append(clip_ends(index, node))
        if is_linear(node, QUANTIZE):
            return _read_grid(index, node, clips)
    return FLOAT_BITS, None


def _read_grid(
    index: Index, node: NodeProto, clips: list[list[int | None]]
) -> tuple[int, tuple[float, float, float] | None]:
    """As ``read_input_grid``, of a QuantizeLinear whose integers are clipped to these ends."""
    scale = constant(index, node.input[1])
    given = constant(index, node.input[2]) if len(node.input) > 2 else None
    zero_point = 0 if given is None else int(given.reshape(-1)[0])
    kind = element_type(index, node)
    levels = 2 ** (4 if kind in FOUR_BITS else 16 if kind in SIXTEEN_BITS else 8)
    low, high = (-levels // 2, levels // 2 - 1) if kind in SIGNED else (0, levels - 1)
    low = max([low, *(end for end, _ in clips if end is not None)])
    high = min([high, *(end for _, end in clips if end is not None)])
    if _requantizes_to_top(index, node, zero_point):
        low = zero_point
    bits = next(bits for bits in (4, 8, 16) if high - low < 2**bits)
    if scale is None or scale.size != 1:
        return bits, None
    distance = float(scale.reshape(-1)[0])
    return bits, (distance, (low - zero_point) * distance, (high - zero_point) * distance)


def _requantizes_to_top(index: Index, node: NodeProto, zero_point: int) -> bool:
    """Whether a QuantizeLinear puts a tensor on the 16 highest levels of uint8, as ``emit`` writes it."""
    before = index.producer.get(node.input[0])
    return before is not None and _is_identity(before) and zero_point == 255 - 15
