"""Make int8 weights unsigned: the kernels of x86 without VNNI that multiply unsigned integers are exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from ..edit import unused_name
from ..index import attribute_of, is_op, list_names, subgraphs
from ..inspect.integers import is_linear
from ..inspect.kernels import OPERATORS
from ..ops import QLINEAR_LAYERS

# What is added to a weight and to its zero point.
SHIFT = 128
# No two integers within it have a sum of products beyond int16.
SAFE = 64
# Its sums are exact as they are.
EXACT = "ConvInteger"
# These take signed integers too, and then no unsigned weights beside them; their kernels for both signed are exact.
TAKE_SIGNED = (*QLINEAR_LAYERS, "MatMulInteger", "MatMulIntegerToFloat")


def unsign_weights(model: ModelProto) -> ModelProto:
    """A copy that has q + 128, of zero point z + 128, in place of int8 constants q, in bodies too.

    So are float constants quantized that a QuantizeLinear makes such integers of. The model itself where there are none
    beyond SAFE, and no such node. What it gives stays the same, but for saturation.
    """
    constants = {k: v for graph in _graphs(model.graph) for k, v in _constants(graph).items()}
    nodes = (node for graph in _graphs(model.graph) for node in graph.node)
    quantizes = any(is_linear(node, "QuantizeLinear") and node.input[0] in constants for node in nodes)
    if not quantizes and not any(map(_beyond, constants.values())):
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    _Writer(copy).write(copy.graph, {})
    return copy


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for body in subgraphs(node):
            yield from _graphs(body)


def _constants(graph: GraphProto) -> dict[str, TensorProto]:
    """Initializers, and what Constant nodes give, by name."""
    given = {tensor.name: tensor for tensor in graph.initializer}
    values = ((node.output[0], attribute_of(node, "value", None)) for node in graph.node if is_op(node, "Constant"))
    return given | {name: value for name, value in values if value is not None}


def _beyond(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.INT8:
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size) and bool(values.max() > SAFE or values.min() < -SAFE)


class _Writer:
    """New constants go to the outermost graph."""

    def __init__(self, model: ModelProto) -> None:
        self.graph, self.taken = model.graph, list_names(model)

    def write(self, graph: GraphProto, outer: dict[str, TensorProto]) -> None:
        bound = {value.name for value in graph.input}.union(*(node.output for node in graph.node))
        known = {name: tensor for name, tensor in outer.items() if name not in bound} | _constants(graph)
        for node in graph.node:
            self._unsign_quantized(graph, node, known)
            for weight, zero_point in _places(node):
                self._unsign(node, weight, zero_point, known)
            for body in subgraphs(node):
                self.write(body, known)

    def _unsign_quantized(self, graph: GraphProto, node: NodeProto, known: dict[str, TensorProto]) -> None:
        """Move the zero points of a QuantizeLinear of a constant and of the DequantizeLinears that alone read it."""
        if not is_linear(node, "QuantizeLinear") or node.input[0] not in known:
            return
        pair = [node, *(other for other in graph.node if node.output[0] in other.input)]
        bare = not all(is_linear(other, "QuantizeLinear", "DequantizeLinear") for other in pair)
        names = ["" if bare or len(other.input) < 3 else other.input[2] for other in pair]
        if all(name in known and known[name].data_type == TensorProto.INT8 for name in names):
            for other, name in zip(pair, names, strict=True):
                other.input[2] = self._add(numpy_helper.to_array(known[name]), name)

    def _unsign(self, node: NodeProto, weight: int, zero_point: int, known: dict[str, TensorProto]) -> None:
        tensor = known.get(node.input[weight]) if weight < len(node.input) else None
        if tensor is None or not _beyond(tensor) or _reads_signed(node, known):
            return
        name = node.input[zero_point] if zero_point < len(node.input) else ""
        if name and name not in known:
            return
        scale = known.get(node.input[1]) if is_linear(node, "DequantizeLinear") else None
        if scale is None and not name and is_linear(node, "DequantizeLinear"):
            return  # of whose shape the zero point has to be
        node.input.extend([""] * (zero_point + 1 - len(node.input)))
        zeros = np.zeros(() if scale is None else list(scale.dims), np.int8)
        node.input[zero_point] = self._add(numpy_helper.to_array(known[name]) if name else zeros, node.input[weight])
        node.input[weight] = self._add(numpy_helper.to_array(tensor), node.input[weight])

    def _add(self, values: np.ndarray, stem: str) -> str:
        name = unused_name(f"{stem}_unsigned", self.taken)
        self.taken.add(name)
        shifted = (values.astype(np.int16) + SHIFT).astype(np.uint8)
        self.graph.initializer.append(numpy_helper.from_array(shifted, name))
        return name


def _places(node: NodeProto) -> tuple[tuple[int, int], ...]:
    """Of a node that may read a weight: where it stands, and where its zero point."""
    if is_linear(node, "DequantizeLinear"):
        return ((0, 2),)
    operator = None if node.op_type == EXACT else OPERATORS.get(node.op_type)
    return () if operator is None else tuple(zip(operator.weights, operator.offsets, strict=True))


def _reads_signed(node: NodeProto, known: dict[str, TensorProto]) -> bool:
    """Whether the weight is multiplied by signed integers, or by what may be such."""
    if node.op_type not in TAKE_SIGNED:
        return False
    place = OPERATORS[node.op_type].activations
    name = node.input[place] if place < len(node.input) else ""
    if not name:  # MatMulInteger alone takes unsigned weights beside integers of both types
        return node.op_type != "MatMulInteger"
    return name not in known or known[name].data_type == TensorProto.INT8
