"""How each layer of a quantized graph stores its weight and reads its input: QDQ, QOperator, packed, or of a peer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

from ..dynamic import find_rows
from ..index import attribute_of, constant, is_op
from ..ops import DYNAMIC_QUANTIZE, LAYERS, LINEAR_OPS, PACKED_WEIGHTS, QUANTIZE, RECURRENT
from ..packed import LOOK_UP
from ..scaled_weights import INTEGERS
from ..values import PACKED_BITS, TYPES, read_values
from ..weight_nodes import trace_weight
from .grids import PASSED_BY, Grid, GriddedGraph, GriddedLayer, read_graphs, spell_type
from .integers import LINEAR_DOMAINS, is_linear
from .quantized_layers import FLOAT_BITS, read_input_grid

ONNX_DOMAINS = ("", "ai.onnx", "com.microsoft", "com.ms.internal.nhwc", "ai.onnx.ml")
# What quantizes a constant or an activation in the domains of other tools: com.amd.quark, aimet.customop, trt, ...
FOREIGN_MARKS = ("quant", "fixneuron")
# The middle of unsigned types: with this zero point a grid is symmetric.
UNSIGNED = {"uint2": 2, "uint4": 8, "uint8": 128, "uint16": 32768}
WHOLE, CHANNEL, ROW, RUN = "tensor", "channel", "row", "run"


class Operator(NamedTuple):
    """Numbers of the inputs of an operator on integers: its weight, that one's scale and zero point, the input's.

    None where the operator has none. form: what the file stores is called.
    """

    weight: int
    scale: int | None
    zero: int
    input_zero: int | None
    form: str = "QOperator"


OPERATORS = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul", "QGemm"), Operator(3, 4, 5, 2)),
    **dict.fromkeys(("ConvInteger", "MatMulInteger"), Operator(1, None, 3, 2)),
    "MatMulIntegerToFloat": Operator(1, 3, 5, 4),
    "QAttention": Operator(1, 4, 7, 6),
    "DynamicQuantizeMatMul": Operator(1, 2, 3, None),
    "DynamicQuantizeLSTM": Operator(1, 8, 9, None),
}


@dataclass(frozen=True)
class StoredGrid:
    """The grid of a weight or of an activation.

    type: of the stored integers, ``int8``; the operator's own name where another tool's operator makes it. bits: None
    where the file does not say. symmetric: whether all zero points stand for the middle of the type; None where they
    are computed. scales: what has a scale of its own: ``tensor``, ``channel``, ``block of 32``, ``row`` of an
    activation, or ``run``, where each run of the model finds it.
    """

    type: str
    bits: int | None
    symmetric: bool | None
    scales: str


@dataclass(frozen=True)
class LayerForm:
    """A layer with a quantized weight or input, or a product of quantized activations.

    name: with the nodes in whose bodies it is, each followed by a slash. form: ``QDQ``, ``QOperator``, ``integers times
    scales``, or the name of the operator. weight: None for products of activations and for weights in float. input:
    None where floats are read. values: of the weight. node: in the model. behind: whether a QuantizeLinear alone reads
    what it gives; None where that is no question. bias, scale: the types of a quantized bias and of the grids' scales,
    of a layer in the form of QDQ; empty where there is none.
    """

    name: str
    op: str
    form: str
    weight: StoredGrid | None
    input: StoredGrid | None
    values: int
    node: NodeProto
    behind: bool | None = None
    bias: str = ""
    scale: str = ""


def find_forms(model: ModelProto) -> tuple[LayerForm, ...]:
    """The layers, products and tables of a model and of its bodies that are quantized in any form, in graph order."""
    return tuple(form for graph in read_graphs(model) for form in _Reader(graph).read())


class _Reader:
    def __init__(self, graph: GriddedGraph) -> None:
        self.graph, self.index = graph, graph.index
        self._layers = {id(layer.node): layer for layer in graph.layers()}

    def read(self) -> Iterator[LayerForm]:
        for node in self.graph.graph.node:
            form = self._read(node)
            if form is not None:
                yield form

    def _read(self, node: NodeProto) -> LayerForm | None:
        if node.op_type in OPERATORS and node.domain in LINEAR_DOMAINS:
            return self._read_operator(node, OPERATORS[node.op_type])
        if node.op_type in PACKED_WEIGHTS and node.domain in LINEAR_DOMAINS:
            return self._read_packed(node)
        if is_op(node, *LAYERS) and len(node.input) > 1:
            return self._read_layer(node)
        if is_op(node, "Gather"):
            return self._read_table(node)
        return self._read_recurrent(node) if is_op(node, *RECURRENT) else None

    def _make(
        self, node: NodeProto, form: str, weight: StoredGrid | None, given: StoredGrid | None, values: int
    ) -> LayerForm:
        name = self.graph.within + (node.name or next(filter(None, node.output), node.op_type))
        return LayerForm(name, node.op_type, form, weight, given, values, node)

    def _read_layer(self, node: NodeProto) -> LayerForm | None:
        """A Conv, ConvTranspose, Gemm or MatMul between QuantizeLinear and DequantizeLinear, or of a peer's kind."""
        layer = self._layers.get(id(node))
        weight, values = (None, 0) if layer is None else self._read_weight(layer.weight)
        form, tensor = "QDQ", None
        if weight is None and (scaled := self._read_scaled(node.input[1])) is not None:
            (weight, tensor), form = scaled, "integers times scales"
        if weight is None and (foreign := self._read_foreign(node.input[1])) is not None:
            (weight, tensor), form = foreign, foreign[0].type
        if tensor is not None:
            values = math.prod(tensor.dims)
        given = None if layer is None else self._read_input(node, layer.input)
        fed = self._read_foreign(node.input[0]) if given is None else None
        if weight is None and given is None and fed is None:
            return None
        if fed is not None:
            given, form = fed[0], form if weight is not None and form != "QDQ" else fed[0].type
        made = self._make(node, form, weight, given, values or self._count_float(node))
        if layer is None:
            return made
        bias = "" if layer.bias is None else layer.bias.stored
        return replace(made, behind=layer.output is not None, bias=bias, scale=self._scale_type(layer))

    def _scale_type(self, layer: GriddedLayer) -> str:
        grid = layer.input or layer.weight
        scale = None if grid is None else self.index.initializers.get(grid.node.input[1])
        return "" if scale is None else spell_type(scale.data_type)

    def _count_float(self, node: NodeProto) -> int:
        tensor = self.index.initializers.get(node.input[1])
        return 0 if tensor is None else math.prod(tensor.dims)

    def _read_weight(self, grid: Grid | None) -> tuple[StoredGrid | None, int]:
        if grid is None:
            return None, 0
        scales = f"block of {grid.block}" if grid.block else WHOLE if grid.axis is None else CHANNEL
        symmetric = is_symmetric(grid.type, grid.zero_point)
        return StoredGrid(grid.stored, bits_of(grid.stored), symmetric, scales), math.prod(grid.dims or ())

    def _read_input(self, node: NodeProto, grid: Grid | None) -> StoredGrid | None:
        if grid is None or grid.role == "weight":
            return None
        kind = grid.type
        if grid.scale is None:
            return StoredGrid(kind, bits_of(kind), None, RUN)
        bits = read_input_grid(self.index, next(t for t in node.input if self.graph.maker(t) is grid))[0]
        bits = (bits_of(kind) or bits) if bits == FLOAT_BITS else bits
        scales = WHOLE if grid.scale.size == 1 else CHANNEL
        entry = next((each for each in self._trace_back(node.input[0]) if each.op_type == QUANTIZE), None)
        if entry is not None and find_rows(self.index, entry.input[0]) is not None:
            scales = ROW
        return StoredGrid(kind, bits, is_symmetric(kind, grid.zero_point), scales)

    def _trace_back(self, tensor: str) -> Iterator[NodeProto]:
        """The nodes that make a tensor of their first input, from the last on."""
        node = self.index.producer.get(tensor)
        while node is not None and node.input and (is_linear(node, *LINEAR_OPS) or is_op(node, *PASSED_BY)):
            yield node
            node = self.index.producer.get(node.input[0])

    def _read_scaled(self, name: str) -> tuple[StoredGrid, TensorProto] | None:
        """A weight that a Cast and a Mul make of integers and scales."""
        product = self.index.producer.get(name)
        if product is None or not is_op(product, "Mul"):
            return None
        cast = self.index.producer.get(product.input[0])
        tensor = self.index.initializers.get(cast.input[0]) if cast is not None and is_op(cast, "Cast") else None
        if tensor is None or tensor.data_type not in INTEGERS:
            return None
        gather = self.index.producer.get(product.input[1])
        scale = self.index.initializers.get(product.input[1] if gather is None else gather.input[0])
        if scale is None:
            return None
        kind, count = spell_type(tensor.data_type), math.prod(scale.dims)
        scales = WHOLE if count == 1 else CHANNEL
        if gather is not None and scale.dims:
            scales = f"block of {-(-tensor.dims[-1] // scale.dims[-1])}"
        return StoredGrid(kind, bits_of(kind), True, scales), tensor

    def _read_foreign(self, name: str) -> tuple[StoredGrid, TensorProto | None] | None:
        """What operators of other tools' domains quantize, as far as their inputs and attributes say it."""
        node, passed = self.index.producer.get(name), 0
        while node is not None and is_op(node, "Reshape", "Transpose", "Cast", "Identity") and passed < 4:
            node, passed = self.index.producer.get(node.input[0]), passed + 1
        if node is None or not is_foreign(node):
            return None
        tensor = self.index.initializers.get(node.input[0]) if node.input else None
        before = self.index.producer.get(node.input[0]) if node.input else None
        if tensor is None and before is not None and is_foreign(before) and before.input:
            tensor = self.index.initializers.get(before.input[0])
        scale = self.index.initializers.get(node.input[1]) if len(node.input) > 1 else None
        zero = self.index.initializers.get(node.input[2]) if len(node.input) > 2 else None
        bits = next((attribute_of(node, key, 0) for key in ("bit_width", "bits", "bitwidth", "num_bits")), 0)
        symmetric = None
        if zero is not None and zero.data_type in TYPES:
            bits = bits or bits_of(spell_type(zero.data_type)) or 0
            symmetric = is_symmetric(spell_type(zero.data_type), read_values(zero))
        scales = RUN if scale is None else WHOLE if math.prod(scale.dims) == 1 else CHANNEL
        block = attribute_of(node, "block_size", 0)
        scales = f"block of {block}" if block else scales
        return StoredGrid(f"{node.domain}.{node.op_type}", bits or None, symmetric, scales), tensor

    def _read_operator(self, node: NodeProto, operator: Operator) -> LayerForm | None:
        read = [*node.input, *[""] * 12]
        stored = trace_weight(self.index, read[operator.weight])
        tensor = None if stored is None else self.index.initializers[stored.tensor]
        weight, dynamic = None, operator.input_zero is None
        if tensor is not None:
            kind = spell_type(tensor.data_type)
            scale = self._scale_dims(node, operator, read)
            scales = CHANNEL if scale is not None and math.prod(scale) > 1 else WHOLE
            symmetric = self._is_middle(read[operator.zero], kind)
            weight = StoredGrid(kind, bits_of(kind), symmetric, scales)
        given = StoredGrid("uint8", 8, None, RUN)
        if operator.input_zero is not None:
            maker = self.index.producer.get(read[0])
            dynamic = maker is not None and is_op(maker, DYNAMIC_QUANTIZE)
            point = self.index.initializers.get(read[operator.input_zero])
            kind = "uint8" if point is None else spell_type(point.data_type)
            symmetric = None if dynamic else self._is_middle(read[operator.input_zero], kind)
            given = StoredGrid(kind, bits_of(kind), symmetric, RUN if dynamic else WHOLE)
        form = node.op_type if dynamic or operator.scale is None else operator.form
        return self._make(node, form, weight, given, 0 if tensor is None else math.prod(tensor.dims))

    def _scale_dims(self, node: NodeProto, operator: Operator, read: list[str]) -> tuple[int, ...] | None:
        """Of a weight's scale; that of ConvInteger and MatMulInteger is in a Mul behind a Cast."""
        if operator.scale is not None:
            scale = self.index.initializers.get(read[operator.scale])
            return None if scale is None else tuple(scale.dims)
        tensor = node.output[0]
        for _ in range(4):
            for reader in self.index.readers(tensor):
                if is_op(reader, "Mul"):
                    return self._constant_factor(reader, tensor)
            onward = [each for each in self.index.readers(tensor) if is_op(each, "Cast", "Reshape", "Add")]
            if not onward:
                return None
            tensor = onward[0].output[0]
        return None

    def _constant_factor(self, product: NodeProto, tensor: str) -> tuple[int, ...] | None:
        """The dimensions of the constant by which a tensor is multiplied, itself or in a product with another scale."""
        other = next((name for name in product.input if name != tensor), "")
        names, before = [other], self.index.producer.get(other)
        names += list(before.input) if before is not None and is_op(before, "Mul") else []
        found = next((self.index.initializers[name] for name in names if name in self.index.initializers), None)
        return None if found is None else tuple(found.dims)

    def _is_middle(self, name: str, kind: str) -> bool | None:
        if not name:
            return is_symmetric(kind, np.zeros(1, np.int64))
        return is_symmetric(kind, constant(self.index, name))

    def _read_packed(self, node: NodeProto) -> LayerForm | None:
        table = node.op_type == LOOK_UP
        number = 0 if table else 1
        tensor = self.index.initializers.get(self._before_reshape(node.input[number]))
        bits, block = attribute_of(node, "bits", 4), attribute_of(node, "block_size", 128 if table else 32)
        zero = 3 if len(node.input) > 3 and node.input[3] else None
        kind = "uint8" if bits == 8 else f"uint{bits}"
        if node.op_type == "MatMulBnb4":
            kind, zero = ("fp4", "nf4")[attribute_of(node, "quant_type", 1)], None
        if table and tensor is not None and tensor.data_type != TensorProto.UINT8:
            kind = spell_type(tensor.data_type)
        values = attribute_of(node, "K", 0) * attribute_of(node, "N", 0)
        if table and tensor is not None:
            values = math.prod(tensor.dims) * (8 // bits if tensor.data_type == TensorProto.UINT8 else 1)
        symmetric = True if zero is None else self._is_packed_middle(node.input[zero], bits)
        weight = StoredGrid(kind, bits, symmetric, f"block of {block}")
        return self._make(node, node.op_type, weight, None, values)

    def _is_packed_middle(self, name: str, bits: int) -> bool | None:
        """Whether zero points, of which several share a byte, are all the middle."""
        found, middle = constant(self.index, name), 1 << (bits - 1)
        if found is None or found.dtype.kind != "u":
            return None if found is None else bool(np.all(found == middle))
        return bool(np.all(found == sum(middle << shift for shift in range(0, 8, bits))))

    def _before_reshape(self, name: str) -> str:
        producer = self.index.producer.get(name)
        return producer.input[0] if producer is not None and is_op(producer, "Reshape") else name

    def _read_table(self, node: NodeProto) -> LayerForm | None:
        """A Gather of the rows of a table that is stored as integers."""
        grid = self.graph.maker(node.input[0])
        if grid is not None and grid.role == "constant" and len(grid.dims or ()) > 1:
            weight, values = self._read_weight(grid)
            return self._make(node, "QDQ", weight, None, values)
        stored = trace_weight(self.index, self._before_reshape(node.input[0]))
        tensor = None if stored is None else self.index.initializers[stored.tensor]
        if tensor is None or tensor.data_type not in INTEGERS or len(tensor.dims) < 2:
            return None
        kind, scale = spell_type(tensor.data_type), self._find_row_scale(node)
        scales = WHOLE if scale is None else ROW
        if scale is not None and len(scale) > 1 and scale[1] > 1:
            scales = f"block of {math.prod(tensor.dims[1:]) // scale[1]}"
        return self._make(node, "integers times scales", StoredGrid(kind, bits_of(kind), None, scales), None,
                          math.prod(tensor.dims))  # fmt: skip

    def _find_row_scale(self, node: NodeProto) -> tuple[int, ...] | None:
        """The dimensions of the scales that are looked up at the same places."""
        for other in self.index.readers(node.input[1]):
            table = self.index.initializers.get(other.input[0]) if is_op(other, "Gather") else None
            if table is not None and table.data_type == TensorProto.FLOAT and other is not node:
                return tuple(table.dims)
        return None

    def _read_recurrent(self, node: NodeProto) -> LayerForm | None:
        found = self._read_scaled(node.input[1])
        if found is not None:
            weight, tensor = found
            return self._make(node, "integers times scales", weight, None, math.prod(tensor.dims))
        grid = self.graph.maker(node.input[1])
        if grid is None or grid.dims is None:
            return None
        stored, values = self._read_weight(grid)
        return self._make(node, "QDQ", stored, None, values)


def is_foreign(node: NodeProto) -> bool:
    """Whether a node quantizes in the domain of another tool."""
    return node.domain not in ONNX_DOMAINS and any(mark in node.op_type.lower() for mark in FOREIGN_MARKS)


def bits_of(kind: str) -> int | None:
    """Bits of a value of a type; None of a type that is none of ONNX."""
    if kind.upper() in PACKED_BITS:
        return PACKED_BITS[kind.upper()]
    number = TensorProto.DataType.Value(kind.upper()) if kind.upper() in TensorProto.DataType.keys() else 0
    return 8 * TYPES[number].itemsize if number in TYPES else None


def is_symmetric(kind: str, zero_point: np.ndarray | None) -> bool | None:
    """Whether the zero points are the middle of the type; None where they are computed."""
    if zero_point is None:
        return None
    return bool(np.all(np.asarray(zero_point, np.float32) == UNSIGNED.get(kind, 0)))
