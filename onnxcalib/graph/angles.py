"""Layers that give angles, whose sines and cosines show absolute errors: Fourier features of times and coordinates."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from .fusion import moves_values
from .index import Index, constant, is_op


def find_turns(model: ModelProto) -> dict[str, float]:
    """Maps tensors to the largest factor with which their values become the angles of a Sin or Cos.

    Followed are movers, sums, changes of sign, and factors that are constants.
    """
    index = Index(model.graph)
    found: dict[str, float] = {}
    for node in reversed(model.graph.node):
        for tensor in node.input:
            if factor := _turn(index, node, tensor, found):
                found[tensor] = max(factor, found.get(tensor, 0.0))
    return found


def _turn(index: Index, node: NodeProto, tensor: str, behind: dict[str, float]) -> float:
    if is_op(node, "Sin", "Cos"):
        return 1.0
    turn = max((behind.get(made, 0.0) for made in node.output), default=0.0)
    if is_op(node, "Add", "Sub", "Neg", "Concat", "Identity") or (
        moves_values(index, node) and tensor == node.input[0]
    ):
        return turn
    if not turn or not is_op(node, "Mul", "Div") or node.input[0] != tensor:
        return 0.0
    factor = constant(index, node.input[1])
    if factor is None or not factor.size or (node.op_type == "Div" and not factor.all()):
        return 0.0
    return turn * float(abs(factor if node.op_type == "Mul" else 1 / factor).max())
