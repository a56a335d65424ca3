"""HardSigmoids on integers: onnxruntime has no such kernel, but it has one that adds, and grids do the rest."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from ..spec import QuantSpec
from .edit import add_constant, refill, take_name
from .fusion import HARD_ALPHA, HARD_BETA
from .index import Index, attribute_of, constant, is_op, known_constant, list_names
from .ops import DEQUANTIZE, QUANTIZE

BYTE = QuantSpec(8)


def write_gates(model: ModelProto, names: Collection[str]) -> int:
    """Write these HardSigmoids of a quantized graph as Adds on integers; returns how many could be.

    ``clip(alpha x + beta, 0, 1)``: the integers of x are dequantized once more, with alpha times their scale, which
    rounds nothing. beta is a dequantized constant. The grid of the result is that of the Clip where its zero point is 0
    and it ends inside of [0, 1].
    """
    index, taken = Index(model.graph), list_names(model)
    before: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        if node.name in names and is_op(node, "HardSigmoid"):
            dequantize = index.producer.get(node.input[0])
            if dequantize is not None and _has_byte_grid(index, dequantize) and _clips(index, node):
                before[node.name] = _write(model.graph, index, node, dequantize, taken)
    if before:
        refill(model.graph.node, [new for node in model.graph.node for new in (*before.get(node.name, ()), node)])
    return len(before)


def _has_byte_grid(index: Index, node: NodeProto) -> bool:
    """Whether the node dequantizes a tensor of uint8."""
    return is_op(node, DEQUANTIZE) and getattr(constant(index, node.input[2]), "dtype", None) == np.uint8


def _clips(index: Index, node: NodeProto) -> bool:
    """Whether all that reads the node's output is a QuantizeLinear that saturates at 0 and not beyond 1."""
    if node.output[0] in index.outputs:
        return False
    for reader in index.readers(node.output[0]):
        if not is_op(reader, QUANTIZE):
            return False
        scale, zero_point = (constant(index, name) for name in reader.input[1:3])
        if scale is None or zero_point is None or zero_point.dtype != np.uint8 or zero_point != 0:
            return False
        if float(scale) * BYTE.qmax > 1:
            return False
    return True


def _write(graph: GraphProto, index: Index, node: NodeProto, dequantize: NodeProto, taken: set[str]) -> list[NodeProto]:
    """Make the node an Add; returns the two nodes of its operands."""

    def name(suffix: str) -> str:
        return take_name(f"{node.name}_{suffix}", taken)

    def dequantized(integers: str, scale: float, zero_point: int, suffix: str) -> NodeProto:
        scales = add_constant(graph, name(f"{suffix}_scale"), np.float32(scale))
        zeros = add_constant(graph, name(f"{suffix}_zero_point"), np.uint8(zero_point))
        return helper.make_node(DEQUANTIZE, [integers, scales, zeros], [name(suffix)], name(f"{suffix}_{DEQUANTIZE}"))

    scale, zero_point = (known_constant(index, each) for each in dequantize.input[1:3])
    alpha, beta = attribute_of(node, "alpha", HARD_ALPHA), attribute_of(node, "beta", HARD_BETA)
    offset = add_constant(graph, name("beta_quantized"), np.uint8(BYTE.qmax if beta > 0 else 0))
    operands = [
        dequantized(dequantize.input[0], alpha * float(scale), int(zero_point), "scaled"),
        dequantized(offset, (abs(beta) or 1.0) / BYTE.qmax, BYTE.qmax if beta < 0 else 0, "beta"),
    ]
    node.op_type, node.input[:] = "Add", [each.output[0] for each in operands]
    del node.attribute[:]
    return operands
