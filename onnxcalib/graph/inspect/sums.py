"""What the integer kernel of a quantized layer adds up, whether the layer is a float one between Q and DQ or fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from ..index import Index, attribute_of, constant, is_op
from ..layout import kernel_rows
from .integers import element_type, is_linear
from .kernels import skip_movers
from .quantized_layers import SIGNED, QuantizedLayer

# What onnxruntime adds to signed activations and what makes signed weights unsigned.
SHIFT = 128


@dataclass(frozen=True)
class Sums:
    """The sums of one layer, and the nodes that stand for it, which compute them without saturation.

    result: the one of their tensors, of the element type ``kind``, that holds the sums times ``scales`` (rows,); of
    None they are sums of integers. source: the integers that are multiplied, once ``shift`` is added to them, and
    transposed first where ``transposed``; a Conv pads with ``zero_point``. rows: what they are multiplied by, as
    ``kernel_rows`` has it. conv: the node whose window a Conv has; weight_shape: that of its weight.
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
    """Those of a layer whose weight is dequantized; None where its input or its scales are none of a kernel's."""
    values = skip_movers(index, node.input[0])
    before = index.producer.get(values)
    if before is None or not is_linear(before, "DequantizeLinear") or (layer.op != "Conv" and layer.stored.ndim != 2):
        return None
    scale, zero_point = _scalar(index, before.input[1]), _scalar(index, *before.input[2:], default=0)
    axis = None if layer.op == "Conv" else layer.axis
    scales = kernel_rows(np.broadcast_to(layer.scale, layer.stored.shape), axis)
    if scale is None or zero_point is None or np.any(scales != scales[:, :1]):
        return None
    nodes, source = [node], before.input[0]
    if values != node.input[0]:
        source = f"{node.output[0]}:integers"
        given = [node.input[0], *before.input[1:]]
        nodes.insert(0, helper.make_node("QuantizeLinear", given, [source], domain=before.domain))
    return Sums(
        nodes=tuple(nodes),
        result=node.output[0],
        kind=index.initializers[index.producer[node.input[1]].input[1]].data_type,
        source=source,
        shift=SHIFT if _integer_type(index, before) in SIGNED else 0,
        zero_point=int(zero_point),
        rows=kernel_rows(layer.stored, axis),
        scales=np.float32(attribute_of(node, "alpha", 1.0)) * np.float32(scale) * np.float32(scales[:, 0]),
        weight_shape=layer.stored.shape,
        conv=node if layer.op == "Conv" else None,
        transposed=bool(attribute_of(node, "transA", 0)),
    )


def read_operator(index: Index, graph: GraphProto, node: NodeProto) -> Sums | None:
    """Those of an operator on integers, its constants for the float operator that takes its place added to the graph.

    None for one that has no such form here.
    """
    read = _READERS.get((node.domain, node.op_type))
    return None if read is None else read(index, graph, node)


def _read_linear(index: Index, graph: GraphProto, node: NodeProto) -> Sums | None:
    """QLinearConv, QLinearMatMul and QGemm: DequantizeLinear, the float operator and QuantizeLinear."""
    operator, bias_place, grid_place = _LINEAR[node.op_type]
    inputs = [*node.input, "", "", ""]
    bias, grid, name = inputs[bias_place], inputs[grid_place : grid_place + 2], node.output[0]
    stored, scale, zero_point = constant(index, inputs[3]), _scalar(index, inputs[1]), _scalar(index, inputs[2])
    scales, offsets = constant(index, inputs[4]), constant(index, inputs[5])
    added = constant(index, bias) if bias else np.int32(0)
    if any(each is None for each in (stored, scale, zero_point, scales, offsets, added)):
        return None
    if operator != "Conv" and stored.ndim != 2:
        return None
    axis = 0 if operator == "Conv" or attribute_of(node, "transB", 0) else stored.ndim - 1
    shape = [-1 if i == axis else 1 for i in range(stored.ndim)]
    scales = np.float32(attribute_of(node, "alpha", 1.0)) * scales.reshape(-1).astype(np.float32)
    weight = (stored.astype(np.float32) - offsets.reshape(shape)) * scales.reshape(shape)
    scales = np.float32(scale) * scales
    read, result = f"{name}:input", f"{name}:float" if grid[0] else name
    tensors = [read, _keep(graph, f"{name}:weight", weight)]
    if bias:
        tensors.append(_keep(graph, f"{name}:bias", added.astype(np.float32) * scales))
    layer = helper.make_node(operator, tensors, [result], node.name)
    layer.attribute.extend(each for each in node.attribute if each.name != "alpha")
    nodes = [helper.make_node("DequantizeLinear", inputs[:3], [read]), layer]
    if grid[0]:
        nodes.append(helper.make_node("QuantizeLinear", [result, *grid], [name]))
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
    """MatMulInteger, its weight made unsigned, as the sums of unsigned integers are exact everywhere."""
    inputs = [*node.input, "", ""]
    stored = constant(index, inputs[1])
    zero_point = constant(index, inputs[3]) if inputs[3] else np.int32(0)
    if stored is None or stored.ndim != 2 or zero_point is None:
        return None
    name = node.output[0]
    moved = [(each.astype(np.int32) + SHIFT).astype(np.uint8) for each in (stored, zero_point)]
    tensors = [inputs[0], _keep(graph, f"{name}:weight", moved[0]), inputs[2]]
    tensors.append(_keep(graph, f"{name}:zero_point", moved[1]))
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


# The float operator, and where the bias and the output's grid stand among the inputs; QLinearMatMul has no bias.
_LINEAR = {"QLinearConv": ("Conv", 8, 6), "QLinearMatMul": ("MatMul", 8, 6), "QGemm": ("Gemm", 6, 7)}
_READERS: dict[tuple[str, str], Callable[[Index, GraphProto, NodeProto], Sums | None]] = {
    ("", "QLinearConv"): _read_linear,
    ("", "QLinearMatMul"): _read_linear,
    ("com.microsoft", "QGemm"): _read_linear,
    ("", "MatMulInteger"): _read_integers,
}


def _scalar(index: Index, *names: str, default: int | None = None) -> np.generic | None:
    """The one value of a constant; the default where there is no name; None for what is no such constant."""
    if not names or not names[0]:
        return None if default is None else np.int32(default)
    value = constant(index, names[0])
    return value.reshape(-1)[0] if value is not None and value.size == 1 else None


def _integer_type(index: Index, dequantize: NodeProto) -> int:
    """The type that a DequantizeLinear reads: its zero point's, or what the QuantizeLinear before it makes."""
    if len(dequantize.input) > 2 and dequantize.input[2]:
        return element_type(index, dequantize)
    node = index.producer.get(dequantize.input[0])
    while node is not None and is_op(node, "Clip", "Identity"):
        node = index.producer.get(node.input[0])
    return element_type(index, node) if node is not None and is_linear(node, "QuantizeLinear") else TensorProto.UINT8


def _keep(graph: GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return name
