"""Tensors that one activation function alone reads, which flattens most of their range: only what it gives counts."""

from __future__ import annotations

from onnx import NodeProto

from .fusion import HARD_ALPHA, HARD_SWISH_ALPHA
from .index import Index, attribute_of, is_op
from .ops import SHAPE_READERS

# Operators that stand for a function by themselves, and those that a Mul with the tensor makes to another.
ALONE = {"Sigmoid": "sigmoid", "Tanh": "tanh", "HardSwish": "hard-swish", "Gelu": "gelu"}
GATES = {"Sigmoid": "swish", "HardSigmoid": "hard-swish"}
# How far a HardSigmoid's alpha may be from that of HardSwish, as files hold it in few digits.
TOLERANCE = 1e-4


def find_squashed(index: Index) -> dict[str, str]:
    """Tensor -> the function of it that alone is read: sigmoid, tanh, swish (also as Sigmoid and Mul), and others."""
    found = {}
    for tensor in index.producer:
        readers = [node for node in index.readers(tensor) if not is_op(node, *SHAPE_READERS)]
        function = None if tensor in index.outputs else _find_function(index, tensor, readers)
        if function is not None:
            found[tensor] = function
    return found


def _find_function(index: Index, tensor: str, readers: list[NodeProto]) -> str | None:
    if len(readers) == 1 and not readers[0].domain:
        return ALONE.get(readers[0].op_type)
    gate = next((node for node in readers if is_op(node, *GATES)), None)
    if len(readers) != 2 or gate is None or gate.output[0] in index.outputs:
        return None
    (product,) = (node for node in readers if node is not gate)
    if not is_op(product, "Mul") or set(product.input) != {tensor, gate.output[0]}:
        return None
    if is_op(gate, "HardSigmoid") and abs(attribute_of(gate, "alpha", HARD_ALPHA) - HARD_SWISH_ALPHA) > TOLERANCE:
        return None
    return GATES[gate.op_type] if index.readers(gate.output[0]) == [product] else None
