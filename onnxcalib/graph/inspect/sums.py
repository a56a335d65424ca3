"""The sums of a quantized layer's integer kernel, for float layers between Q and DQ and for fused operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper

from ..edit import add_constant, write_attributes
from ..index import Index, attribute_of, constant, is_op
from ..layout import kernel_rows
from ..ops import DEQUANTIZE, QUANTIZE
from .integers import element_type, is_linear
from .kernels import skip_movers
from .quantized_layers import SIGNED, QuantizedLayer

# What onnxruntime adds to signed activations, and what makes signed weights unsigned.
SHIFT = 128


@dataclass(frozen=True)
class Sums:
    """The sums of one layer, and nodes that replace the layer and compute the sums without saturation.

    result: the tensor of these nodes, of element type ``kind``, that holds the sums times ``scales``, (rows,), or the
    sums of integers if that is None. source: the integers that are multiplied once ``shift`` is added to them, after a
    transposition if ``transposed``; a Conv pads them with ``zero_point``. rows: the integers by which they are
    multiplied, as in ``kernel_rows``. conv: the node with the window of a Conv; weight_shape: of its weight.
    """

    nodes: tuple[NodeProto, ...]
    result: str
    kind: int
    source: str
    shift: int
    zero_point: int
    rows: np.ndarray
    scales: np.ndarray | None
    weight_shape: tuple[int, ...]
    conv: NodeProto | None = None
    transposed: bool = False


def read_layer(index: Index, node: NodeProto, layer: QuantizedLayer) -> Sums | None:
    """The sums of a layer whose weight is dequantized; None where no kernel takes its input or its scales."""
    values = skip_movers(index, node.input[0])
    before = index.producer.get(values)
    if before is None or not is_linear(before, DEQUANTIZE) or (layer.op != "Conv" and len(layer.shape) != 2):
        return None
    scale, zero_point = _scalar(index, before.input[1]), _scalar(index, *before.input[2:], default=0)
    axis = None if layer.op == "Conv" else layer.axis
    scales = kernel_rows(np.broadcast_to(layer.scale, layer.shape), axis)
    if scale is None or zero_point is None or np.any(scales != scales[:, :1]):
        return None
    nodes, source = [node], before.input[0]
    if values != node.input[0]:
        source = f"{node.output[0]}:integers"
        given = [node.input[0], *before.input[1:]]
        nodes.insert(0, helper.make_node(QUANTIZE, given, [source], domain=before.domain))
    return Sums(
        nodes=tuple(nodes),
        result=node.output[0],
        kind=index.initializers[index.producer[node.input[1]].input[1]].data_type,
        source=source,
        shift=SHIFT if _integer_type(index, before) in SIGNED else 0,
        zero_point=int(zero_point),
        rows=kernel_rows(layer.stored, axis),
        scales=np.float32(attribute_of(node, "alpha", 1.0)) * np.float32(scale) * scales[:, 0].astype(np.float32),
        weight_shape=layer.shape,
        conv=node if layer.op == "Conv" else None,
        transposed=bool(attribute_of(node, "transA", 0)),
    )


def read_operator(index: Index, graph: GraphProto, node: NodeProto) -> Sums | None:
    """The sums of an operator on integers; constants of the nodes that replace it are added to the graph.

    None for an operator for which there are none.
    """
    read = _READERS.get((node.domain, node.op_type))
    return None if read is None else read(index, graph, node)


def _read_linear(index: Index, graph: GraphProto, node: NodeProto) -> Sums | None:
    """QLinearConv, QLinearMatMul and QGemm, as DequantizeLinear, the float operator and QuantizeLinear."""
    operator, bias_number, grid_number = _LINEAR[node.op_type]
    inputs = [*node.input, "", "", ""]
    bias, grid, name = inputs[bias_number], inputs[grid_number : grid_number + 2], node.output[0]
    scale, zero_point = _scalar(index, inputs[1]), _scalar(index, inputs[2])
    stored, weight_scales, offsets = (constant(index, number) for number in inputs[3:6])
    if stored is None or weight_scales is None or offsets is None or scale is None or zero_point is None:
        return None
    added = constant(index, bias) if bias else None
    if (bias and added is None) or (operator != "Conv" and stored.ndim != 2):
        return None
    axis = 0 if operator == "Conv" or attribute_of(node, "transB", 0) else stored.ndim - 1
    shape = [-1 if each == axis else 1 for each in range(stored.ndim)]
    scales = np.float32(attribute_of(node, "alpha", 1.0)) * weight_scales.reshape(-1).astype(np.float32)
    weight = (stored.astype(np.float32) - offsets.reshape(shape)) * scales.reshape(shape)
    scales = np.float32(scale) * scales
    read, result = f"{name}:input", f"{name}:float" if grid[0] else name
    tensors = [read, add_constant(graph, f"{name}:weight", weight)]
    if added is not None:
        tensors.append(add_constant(graph, f"{name}:bias", added.astype(np.float32) * scales))
    layer = helper.make_node(operator, tensors, [result], node.name)
    layer.attribute.extend(node.attribute)
    write_attributes(layer, {}, drop=("alpha",))
    nodes = [helper.make_node(DEQUANTIZE, inputs[:3], [read]), layer]
    if grid[0]:
        nodes.append(helper.make_node(QUANTIZE, [result, *grid], [name]))
    return Sums(
        nodes=tuple(nodes),
        result=result,
        kind=TensorProto.FLOAT,
        source=inputs[0],
        shift=0,
        zero_point=int(zero_point),
        rows=kernel_rows(stored, None if operator == "Conv" else axis),
        scales=np.broadcast_to(scales, stored.shape[axis : axis + 1]),
        weight_shape=stored.shape,
        conv=layer if operator == "Conv" else None,
        transposed=bool(attribute_of(node, "transA", 0)),
    )


def _read_integers(index: Index, graph: GraphProto, node: NodeProto) -> Sums | None:
    """MatMulInteger, its weight made unsigned, as the sums of unsigned integers are exact on every processor."""
    inputs = [*node.input, "", ""]
    stored = constant(index, inputs[1])
    zero_point = constant(index, inputs[3]) if inputs[3] else np.zeros((), np.int32)
    if stored is None or stored.ndim != 2 or zero_point is None:
        return None
    name = node.output[0]
    weight, offset = ((each.astype(np.int32) + SHIFT).astype(np.uint8) for each in (stored, zero_point))
    tensors = [inputs[0], add_constant(graph, f"{name}:weight", weight), inputs[2]]
    tensors.append(add_constant(graph, f"{name}:zero_point", np.atleast_1d(offset)))
    return Sums(
        nodes=(helper.make_node("MatMulInteger", tensors, [name], node.name),),
        result=name,
        kind=TensorProto.INT32,
        source=inputs[0],
        shift=0,
        zero_point=0,
        rows=kernel_rows(stored, 1),
        scales=None,
        weight_shape=stored.shape,
    )


# The float operator, and the numbers of the inputs that are the bias and the output's grid; QLinearMatMul has no bias.
_LINEAR = {"QLinearConv": ("Conv", 8, 6), "QLinearMatMul": ("MatMul", 8, 6), "QGemm": ("Gemm", 6, 7)}
_READERS: dict[tuple[str, str], Callable[[Index, GraphProto, NodeProto], Sums | None]] = {
    ("", "QLinearConv"): _read_linear,
    ("", "QLinearMatMul"): _read_linear,
    ("com.microsoft", "QGemm"): _read_linear,
    ("", "MatMulInteger"): _read_integers,
}


def _scalar(index: Index, *names: str, default: int | None = None) -> float | None:
    """The one value of a constant; the default if there is no name; None for other tensors."""
    if not names or not names[0]:
        return default
    value = constant(index, names[0])
    return value.item() if value is not None and value.size == 1 else None


def _integer_type(index: Index, dequantize: NodeProto) -> int:
    """The type that a DequantizeLinear reads: its zero point's, or the one that the QuantizeLinear before it makes."""
    if len(dequantize.input) > 2 and dequantize.input[2]:
        return element_type(index, dequantize)
    node = index.producer.get(dequantize.input[0])
    while node is not None and is_op(node, "Clip", "Identity"):
        node = index.producer.get(node.input[0])
    return element_type(index, node) if node is not None and is_linear(node, QUANTIZE) else TensorProto.UINT8
