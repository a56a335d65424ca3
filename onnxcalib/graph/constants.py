"""What the constants of a file take, as bits for each weight of the float model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .embeddings import find_tied
from .index import all_graphs, all_nodes, attribute_of, is_op
from .ops import MATRIX_LAYERS, PACKED_WEIGHTS
from .packed import DOMAIN, LOOK_UP
from .values import find_place, is_outside

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def count_weights(model: ModelProto) -> int:
    """Floats in the initializers and Constants of a model, and of bodies in it.

    A table that is stored for the embedding and for the head counts once. Of matrices and tables that are packed
    already the values count, in place of their scales and zero points.
    """
    packed = [node for node in all_nodes(model.graph) if node.domain == DOMAIN and node.op_type in PACKED_WEIGHTS]
    grids = {name for node in packed for name in node.input[2:4]}  # zero points may be floats, as those of HQQ are
    stored = _list_constants(model)
    counts = [math.prod(t.dims) for t in stored if t.data_type in FLOATS and t.name not in grids]
    by_name = {t.name: t for t in stored}
    values = {name: count for node in packed for name, count in _count_packed(node, by_name)}
    weights = {node.input[1] for node in model.graph.node if is_op(node, *MATRIX_LAYERS)}
    twice = find_tied(model).keys() - weights
    floats = sum(counts) - sum(math.prod(by_name[table].dims) for table in twice)
    return int(floats + sum(values.values()))


def _list_constants(model: ModelProto) -> list[TensorProto]:
    """The initializers of the graph and of its bodies, and the floats of their Constants."""
    found = [tensor for graph in all_graphs(model.graph) for tensor in graph.initializer]
    written = [
        a.t for node in all_nodes(model.graph) if is_op(node, "Constant") for a in node.attribute if a.name == "value"
    ]
    return found + [tensor for tensor in written if tensor.data_type in FLOATS]


def _count_packed(node: NodeProto, stored: Mapping[str, TensorProto]) -> Iterator[tuple[str, int]]:
    """The tensor of a node's packed values, if it is stored, and how many they are."""
    table = node.op_type == LOOK_UP
    tensor = stored.get(node.input[0 if table else 1])
    if tensor is None:
        return
    if table:
        each = 8 // attribute_of(node, "bits", 4) if tensor.data_type == TensorProto.UINT8 else 1
        yield tensor.name, each * math.prod(tensor.dims)
    else:
        yield tensor.name, attribute_of(node, "K", 0) * attribute_of(node, "N", 0)


def constant_bytes(model: ModelProto) -> int:
    """Bytes of all initializers and float Constants: integers, scales, zero points, biases, and what is left in float.

    Those of bodies count too. Nodes and names are left out.
    """
    return sum(map(_value_bytes, _list_constants(model)))


def _value_bytes(tensor: TensorProto) -> int:
    if is_outside(tensor):
        return int(find_place(tensor).length)
    return len(tensor.raw_data) if tensor.HasField("raw_data") else int(numpy_helper.to_array(tensor).nbytes)


def bits_per_weight(quantized: ModelProto, weights: int) -> float:
    """Bits of all constants of a quantized file for each of the float model's ``weights`` (``count_weights``)."""
    return 8 * constant_bytes(quantized) / max(1, weights)


def weigh_alone(model: ModelProto, quantized: ModelProto, *, alone: bool) -> float | None:
    """``bits_per_weight`` of a float model's file; None where no weights are quantized alone."""
    return bits_per_weight(quantized, count_weights(model)) if alone else None
