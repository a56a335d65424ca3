"""Make int8 weights unsigned, as kernels of x86 without VNNI add the products of two unsigned integers exactly."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ..edit import add_constant, copy_model, take_name
from ..index import all_graphs, in_scope, list_names, own_constants, subgraphs
from ..inspect.integers import is_linear
from ..inspect.kernels import OPERATORS
from ..ops import DEQUANTIZE, LINEAR_OPS, QLINEAR_LAYERS, QUANTIZE
from ..values import read_values

# What is added to a weight and to its zero point.
SHIFT = 128
# Two products of uint8 with integers of at most this size have a sum within int16.
SAFE = 64
# Its sums are exact with signed weights.
EXACT = "ConvInteger"
# These take signed activations too, but no unsigned weights with them. Their kernels for signed operands are exact.
TAKE_SIGNED = (*QLINEAR_LAYERS, "MatMulInteger", "MatMulIntegerToFloat")


def unsign_weights(model: ModelProto) -> ModelProto:
    """A copy in which int8 weights q of zero point z are q + 128 of zero point z + 128, in bodies too.

    A QuantizeLinear that makes an int8 weight of a float constant makes a uint8 one. A model without a QuantizeLinear
    of constants and without weights beyond SAFE is returned itself. Outputs stay the same, except for saturation.
    """
    graphs = list(all_graphs(model.graph))
    constants = {name: tensor for graph in graphs for name, tensor in own_constants(graph).items()}
    nodes = (node for graph in graphs for node in graph.node)
    quantizes = any(is_linear(node, QUANTIZE) and node.input[0] in constants for node in nodes)
    if not quantizes and not any(map(_is_unsafe, constants.values())):
        return model
    copy = copy_model(model)
    _Writer(copy).write(copy.graph, {})
    return copy


def _is_unsafe(tensor: TensorProto) -> bool:
    """Whether these are int8 integers of which two products may have a sum beyond int16."""
    if tensor.data_type != TensorProto.INT8:
        return False
    values = read_values(tensor)
    return bool(values.size) and bool(values.max() > SAFE or values.min() < -SAFE)


class _Writer:
    """Rewrites the nodes of a graph and its bodies; new constants go to the outermost graph."""

    def __init__(self, model: ModelProto) -> None:
        self.graph, self.taken = model.graph, list_names(model)

    def write(self, graph: GraphProto, outer: Mapping[str, TensorProto]) -> None:
        known = in_scope(graph, outer, own_constants(graph))
        for node in graph.node:
            self._unsign_quantized(graph, node, known)
            for weight, zero_point in _weight_inputs(node):
                self._unsign(node, weight, zero_point, known)
            for body in subgraphs(node):
                self.write(body, known)

    def _unsign_quantized(self, graph: GraphProto, node: NodeProto, known: Mapping[str, TensorProto]) -> None:
        """Move the zero points of a QuantizeLinear of a constant and of the DequantizeLinears that alone read it."""
        if not is_linear(node, QUANTIZE) or node.input[0] not in known:
            return
        nodes = [node, *(other for other in graph.node if node.output[0] in other.input)]
        if not all(is_linear(other, *LINEAR_OPS) and len(other.input) > 2 for other in nodes):
            return
        names = [other.input[2] for other in nodes]
        if all(name in known and known[name].data_type == TensorProto.INT8 for name in names):
            for other, name in zip(nodes, names, strict=True):
                other.input[2] = self._add(read_values(known[name]), name)

    def _unsign(self, node: NodeProto, weight: int, zero_point: int, known: Mapping[str, TensorProto]) -> None:
        """Make the weight unsigned; ``weight`` and ``zero_point`` are numbers of the node's inputs."""
        tensor = known.get(node.input[weight]) if weight < len(node.input) else None
        if tensor is None or not _is_unsafe(tensor) or _reads_signed(node, known):
            return
        name = node.input[zero_point] if zero_point < len(node.input) else ""
        if name and name not in known:
            return
        scale = known.get(node.input[1]) if is_linear(node, DEQUANTIZE) else None
        if scale is None and not name and is_linear(node, DEQUANTIZE):
            return  # the zero point must have the shape of the scale, which is unknown
        node.input.extend([""] * (zero_point + 1 - len(node.input)))
        zeros = np.zeros(() if scale is None else list(scale.dims), np.int8)
        node.input[zero_point] = self._add(read_values(known[name]) if name else zeros, node.input[weight])
        node.input[weight] = self._add(read_values(tensor), node.input[weight])

    def _add(self, values: np.ndarray, original: str) -> str:
        name = take_name(f"{original}_unsigned", self.taken)
        return add_constant(self.graph, name, (values.astype(np.int16) + SHIFT).astype(np.uint8))


def _weight_inputs(node: NodeProto) -> tuple[tuple[int, int], ...]:
    """Numbers of the inputs that are weights and their zero points; none for a node that reads no weight."""
    if is_linear(node, DEQUANTIZE):
        return ((0, 2),)
    operator = None if node.op_type == EXACT else OPERATORS.get(node.op_type)
    return () if operator is None else tuple(zip(operator.weights, operator.offsets, strict=True))


def _reads_signed(node: NodeProto, known: Mapping[str, TensorProto]) -> bool:
    """Whether the weight is multiplied by integers that are signed, or that may be."""
    number = OPERATORS[node.op_type].activations if node.op_type in TAKE_SIGNED else None
    if number is None:
        return False
    name = node.input[number] if number < len(node.input) else ""
    if not name:  # MatMulInteger alone takes unsigned weights with signed and unsigned activations
        return node.op_type != "MatMulInteger"
    return name not in known or known[name].data_type == TensorProto.INT8
