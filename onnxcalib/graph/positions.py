"""Find what is computed from positions, ranges, constants and shapes alone, such as the angles of rotary embeddings.

256 levels hold such values badly: positions count up to thousands, and sines turn small errors of them into large ones.
Like an operation with a constant, one with such an operand costs little in float.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import ModelProto, NodeProto, TensorProto

from .index import Index, has_bodies, is_op, reads
from .ops import INTEGER_OPS, LAYERS, RANDOM_OPS, SHAPE_READERS

# Of what a graph input counts or points to; unsigned bytes are images.
WHOLE_NUMBERS = (TensorProto.INT32, TensorProto.INT64)
# Between data and positions these are as between data and a constant.
ARITHMETIC = ("Add", "Mul", "MatMul")
# Operators of true and false.
TRUTHS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "Xor")
FROM_POSITIONS = "computes with positions, ranges and constants alone, of which 256 levels hold too little"
WITH_POSITIONS = "its other operand is computed from positions, ranges and constants alone, and stays in float"


def find_positional(model: ModelProto, index: Index, masks: Collection[str] = ()) -> dict[str, str]:
    """Maps nodes with an integer kernel that compute with positions to the reason why they stay in float.

    Values of a graph input of whole numbers are positions, but what a Gather looks up with them, what a layer makes of
    them, and masks of true and false are none. A layer with one input, which is an outer product, is no layer here.
    masks: inputs that hold no positions either.
    """
    computed = _find_computed(model, index, masks)
    found = {}
    for node in model.graph.node:
        own = [name for name in node.input if name]
        free = [name for name in own if name in computed or name in index.initializers]
        if not computed.intersection(own) or not is_op(node, *INTEGER_OPS, "MatMul", "Gemm"):
            continue
        if len(free) == len(own) and (not _is_layer(index, node) or _is_outer(index, node)):
            found[node.name] = FROM_POSITIONS
        elif len(free) < len(own) and is_op(node, *ARITHMETIC):
            found[node.name] = WITH_POSITIONS
    return found


def _find_computed(model: ModelProto, index: Index, masks: Collection[str]) -> set[str]:
    """Tensors that are computed from positions, ranges, constants and shapes, and from nothing else."""
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    found = {name for name in index.inputs if inputs.get(name) in WHOLE_NUMBERS and name not in masks}
    for node in model.graph.node:
        if is_op(node, *SHAPE_READERS):
            found.update(node.output)
        elif not _gives_data(index, node) and all(t in found or t in index.initializers for t in reads(node)):
            found.update(node.output)
    return found - set(index.inputs)


def _gives_data(index: Index, node: NodeProto) -> bool:
    """Whether what a node makes of positions is none: rows of a table, a layer's output, noise, truth values."""
    if is_op(node, "Gather", "GatherElements", "GatherND"):
        table = index.initializers.get(node.input[0])
        return table is not None and table.data_type not in WHOLE_NUMBERS
    if _is_layer(index, node):
        return not _is_outer(index, node)
    return has_bodies(node) or is_op(node, *RANDOM_OPS, *TRUTHS)


def _is_layer(index: Index, node: NodeProto) -> bool:
    return is_op(node, *LAYERS) and not index.initializers.keys().isdisjoint(node.input[:2])


def _is_outer(index: Index, node: NodeProto) -> bool:
    """Whether a product of matrices multiplies each value of one by each of the other, and sums nothing."""
    if not is_op(node, "MatMul", "Gemm"):
        return False
    left, right = (index.initializers.get(name) for name in node.input[:2])
    if right is not None:
        return len(right.dims) > 1 and 1 in (right.dims[-2:] if node.op_type == "Gemm" else right.dims[-2:-1])
    return left is not None and len(left.dims) > 1 and left.dims[-1] == 1
