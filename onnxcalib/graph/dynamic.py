"""Write layers that quantize their input as they run, for which the file has no grid.

Each row of x is divided by its peak, ReduceMax(Abs(x)), and the layer reads that on one grid from -1 to 1, as any other
layer reads one: x / peaks -> QuantizeLinear -> DequantizeLinear -> MatMul -> Mul by the peaks -> Add of the bias.
onnxruntime makes one kernel of the pairs and the MatMul. No row's rounding depends on another row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, helper

from ..spec import LEAST_PEAK, ROW_SCALE, ROW_ZERO_POINT
from .edit import write_attributes
from .index import Index, is_op
from .new_nodes import NewNodes
from .ops import AXES_AS_INPUT_OPSET, DEQUANTIZE, QUANTIZE

GRID: dict[str, np.ndarray] = {
    "scale": np.array(ROW_SCALE, np.float32),
    "zero_point": np.array(ROW_ZERO_POINT, np.uint8),
}
# What becomes of a tensor from node to node.
ENDS = ("magnitudes", "largest", "peaks", "rows", "rows_quantized", "rows_dequantized")


class Rows(NamedTuple):
    """A tensor whose rows are divided by their peaks. nodes: those that read it."""

    tensor: str
    peaks: str
    nodes: tuple[str, str]


def find_rows(index: Index, tensor: str) -> Rows | None:
    """What ``round_rows`` divides to give a tensor; None for a tensor of another kind."""
    divide = index.producer.get(tensor)
    if divide is None or not is_op(divide, "Div"):
        return None
    source, peaks = divide.input
    step, behind = divide, peaks
    for op in ("Max", "ReduceMax", "Abs"):
        before = index.producer.get(behind)
        if before is None or not is_op(before, op):
            return None
        step, behind = before, before.input[0]
    return Rows(source, peaks, (divide.name, step.name)) if behind == source else None


class DynamicNodes:
    """Makes the nodes of dynamic layers; those that read one tensor read the same integers. opset: of the model."""

    def __init__(self, new: NewNodes, opset: int) -> None:
        self._new, self._opset = new, opset
        self._rows: dict[str, tuple[str, str]] = {}

    def rewrite(self, node: NodeProto, bias: np.ndarray | None) -> tuple[list[NodeProto], list[NodeProto]]:
        """Let a MatMul, or a Gemm of a weight (inputs, channels), read rows of peak 1; both become a MatMul.

        Returns the nodes before and behind it. bias: added behind it, if there is one.
        """
        before: list[NodeProto] = []
        source, result, name = node.input[0], node.output[0], node.name
        if source not in self._rows:
            before, self._rows[source] = self._quantize(source)
        rows, peaks = self._rows[source]
        node.op_type = "MatMul"
        write_attributes(node, {}, drop=tuple(attribute.name for attribute in node.attribute))
        del node.input[2:]
        node.input[0] = rows
        node.output[0] = self._new.name(f"{result}_by_peak")
        product = result if bias is None else self._new.name(f"{name}_product")
        behind = [self._new.node("Mul", [node.output[0], peaks], product, name)]
        if bias is not None:
            added = self._new.constant(f"{name}_bias", bias.astype(np.float32))
            behind.append(self._new.node("Add", [product, added], result, name))
        return before, behind

    def _quantize(self, tensor: str) -> tuple[list[NodeProto], tuple[str, str]]:
        new, shared = self._new, ("last_axis", "least_peak")

        def keep(end: str, value: np.ndarray) -> str:
            return new.shared_constant(end, value) if end in shared else new.constant(f"{tensor}_{end}", value)

        nodes, floats, peaks = round_rows(tensor, lambda end: new.name(f"{tensor}_{end}"), keep, self._opset)
        for node in nodes:
            node.name = new.name(f"{tensor}_{node.op_type}")
        return nodes, (floats, peaks)


def round_rows(
    tensor: str, name: Callable[[str], str], keep: Callable[[str, np.ndarray], str], opset: int
) -> tuple[list[NodeProto], str, str]:
    """Nodes that divide the rows of a tensor by their peaks and round that; what they give, and the peaks.

    The nodes have no names. name: gives what is called ``end`` a name; keep: makes a constant of one; opset: of the
    model. The zero points of both grids are constants of their own, as ``emit`` says.
    """
    magnitudes, largest, peaks, rows, integers, floats = map(name, ENDS)
    as_input = opset >= AXES_AS_INPUT_OPSET
    axes = [keep("last_axis", np.array([-1], np.int64))] if as_input else []
    over: dict[str, Any] = {} if as_input else {"axes": [-1]}
    first, second = ([keep(f"{of}_{end}", value) for end, value in GRID.items()] for of in ("rows", "rounded"))
    nodes = [
        helper.make_node("Abs", [tensor], [magnitudes]),
        helper.make_node("ReduceMax", [magnitudes, *axes], [largest], keepdims=1, **over),
        helper.make_node("Max", [largest, keep("least_peak", np.array(LEAST_PEAK, np.float32))], [peaks]),
        helper.make_node("Div", [tensor, peaks], [rows]),
        helper.make_node(QUANTIZE, [rows, *first], [integers]),
        helper.make_node(DEQUANTIZE, [integers, *second], [floats]),
    ]
    return nodes, floats, peaks
