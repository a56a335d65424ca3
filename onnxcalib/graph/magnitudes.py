"""Magnitudes: roots of sums of squares, as of the real and the imaginary part of a spectrum."""

from __future__ import annotations

from onnx import NodeProto

from .index import Index, constant, is_op


def is_magnitude(index: Index, node: NodeProto) -> bool:
    """Whether a node takes the root of a sum of squares that is no divisor, as that of a norm is."""
    if is_op(node, "ReduceL2"):
        return not _divides(index, node.output[0])
    if not is_op(node, "Sqrt") or _divides(index, node.output[0]):
        return False
    waiting, squares = [node.input[0]], 0
    while waiting:
        maker = index.producer.get(waiting.pop())
        if maker is None:
            continue
        if is_op(maker, "ReduceSumSquare") or _squares(index, maker):
            squares += 1
        elif is_op(maker, "Add", "ReduceSum", "Clip", "Max"):  # which keep a small number from the root
            waiting += [name for name in maker.input if name]
        else:
            return False
    return squares > 0


def _squares(index: Index, node: NodeProto) -> bool:
    if is_op(node, "Mul"):
        return bool(node.input[0] == node.input[1])
    power = constant(index, node.input[1]) if is_op(node, "Pow") else None
    return power is not None and bool((power == 2).all())


def _divides(index: Index, tensor: str) -> bool:
    """Whether a tensor, or what is added to it or bounds it from below, divides others."""
    for reader in index.readers(tensor):
        if is_op(reader, "Reciprocal") or (is_op(reader, "Div") and reader.input[1] == tensor):
            return True
        if is_op(reader, "Add", "Max", "Clip", "Expand") and _divides(index, reader.output[0]):
            return True
    return False
