"""List the weights that a scheme leaves in float: the nodes that read them, each with the reason and the bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from .embeddings import LEAST_BYTES
from .index import attribute_of, in_scope, is_op, own_constants, subgraphs
from .ops import CONVOLUTIONS, LAYERS, PACKED_WEIGHTS, RECURRENT
from .weightless import held_bytes

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
# What to do about nodes that onnxruntime's optimizer made of others.
ORT_DOMAIN, UNOPTIMISED = "com.microsoft", "quantize the model as it was before onnxruntime optimised it"
OTHER_CONSTANT = "a constant that is no layer's weight"
# Operators of decoders that onnxruntime's tools write, which have tables of rotations.
ROTARY = ("GroupQueryAttention", "RotaryEmbedding")


@dataclass(frozen=True)
class FloatWeight:
    """A node with a weight that stays in float, the reason, and the bytes of the weights that no node before it read.

    op: with its domain, where that is not the standard one.
    """

    name: str
    op: str
    reason: str
    bytes: int


def list_float_weights(model: ModelProto, quantized: Collection[str]) -> tuple[FloatWeight, ...]:
    """The nodes, those of bodies included, that read a float weight and are not ``quantized``, in graph order.

    Matrices and stacks of them are weights where an operator multiplies by them or looks their rows up. Constants of
    other operators are listed from LEAST_BYTES on.
    """
    found = []
    counted: set[int] = set()
    for node, weights, constants, inside in _walk(model.graph, {}, ""):
        if node.name in quantized:
            continue
        own = [tensor for tensor in weights if id(tensor) not in counted]
        counted.update(map(id, own))
        name = node.name or next(filter(None, node.output), node.op_type)
        op = f"{node.op_type} of {node.domain}" if node.domain else node.op_type
        found.append(FloatWeight(name, op, _explain(node, weights, constants, inside), sum(map(held_bytes, own))))
    return tuple(found)


def spell_holders(model: ModelProto) -> str:
    """What reads most of the weights of a model without a layer to quantize; an empty text where there are none."""
    found = list_float_weights(model, ())
    if not found:
        return ""
    (op, reason), count = Counter((each.op, each.reason) for each in found).most_common(1)[0]
    return f"{count} of its {len(found)} weights {'is' if count == 1 else 'are'} read by {op}: {reason}"


_Found = tuple[NodeProto, list[TensorProto], Mapping[str, TensorProto], str]


def _walk(graph: GraphProto, outer: Mapping[str, TensorProto], inside: str) -> Iterator[_Found]:
    """Nodes with weights, these, the constants that the node can read, and the node whose body it is in, or no text."""
    constants = in_scope(graph, outer, own_constants(graph))
    for node in graph.node:
        weights = _weights_of(node, constants)
        if weights or (is_op(node, *CONVOLUTIONS) and node.input[1] not in constants):
            yield node, weights, constants, inside
        for body in subgraphs(node):
            yield from _walk(body, constants, inside or f"{node.op_type} {node.name}".strip())


def _weights_of(node: NodeProto, constants: Mapping[str, TensorProto]) -> list[TensorProto]:
    names = dict.fromkeys(name for name in node.input if name in constants)
    floats = [constants[name] for name in names if constants[name].data_type in FLOATS]
    if is_op(node, "Constant"):
        return []
    if is_op(node, "Gather"):
        return [tensor for tensor in floats if tensor.name == node.input[0] and len(tensor.dims) == 2]
    if node.domain or is_op(node, *LAYERS, *RECURRENT, "Einsum", "DeformConv"):
        least = 1 if is_op(node, "MatMul") or node.op_type in PACKED_WEIGHTS else 2
        return [tensor for tensor in floats if len(tensor.dims) >= least and math.prod(tensor.dims) > 1]
    return [tensor for tensor in floats if held_bytes(tensor) >= LEAST_BYTES]


def _explain(
    node: NodeProto, weights: list[TensorProto], constants: Mapping[str, TensorProto], inside: str = ""
) -> str:
    if node.domain == ORT_DOMAIN and node.op_type in PACKED_WEIGHTS:
        return "its weight is quantized already, and stays as it is"
    if node.domain == ORT_DOMAIN and node.op_type in ROTARY:
        return "its constants are cosines and sines of positions, no weights"
    if node.domain == ORT_DOMAIN or node.domain.startswith(f"{ORT_DOMAIN}."):
        return f"an operator of onnxruntime's own; {UNOPTIMISED}"
    if node.domain:
        return "its operator is not a standard one"
    if any(tensor.data_type == TensorProto.DOUBLE for tensor in weights):
        return "its weight is of type double; export the model in float32"
    if is_op(node, *RECURRENT):
        return "a recurrent layer, which files for onnxruntime alone have with integers as weights"
    if is_op(node, "Gather"):
        return _explain_table(weights[0])
    if is_op(node, "Einsum"):
        return f"its equation, {attribute_of(node, 'equation', b'').decode()}, is no product of a matrix"
    if is_op(node, *LAYERS):
        return _explain_layer(node, constants, inside)
    return "a layer without an integer kernel" if is_op(node, "DeformConv") else OTHER_CONSTANT


def _explain_table(table: TensorProto) -> str:
    if held_bytes(table) < LEAST_BYTES:
        return f"a table below {LEAST_BYTES:,} bytes, whose look-up would cost more than it saves"
    return "a table that is not looked up by row alone, or that the settings leave in float"


def _explain_layer(node: NodeProto, constants: Mapping[str, TensorProto], inside: str) -> str:
    if node.input[1] not in constants:
        if is_op(node, *CONVOLUTIONS):
            return "its weight is computed, not stored"
        return "its weight is the left operand"
    if len(constants[node.input[1]].dims) != 2 and is_op(node, "MatMul"):
        return f"its weight has {len(constants[node.input[1]].dims)} dimensions, where a layer has a matrix"
    if is_op(node, "Gemm") and attribute_of(node, "transA", 0):
        return "it transposes its input"
    if inside:
        return f"inside the body of {inside}, which stays in float"
    return "its bias is computed, or no value for each output channel"
