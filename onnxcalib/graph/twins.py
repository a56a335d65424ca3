"""Twins of layers: each layer computed a second time on its input rounded to 256 levels, beside the float one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ..spec import LayerScheme, QParams
from .dynamic import round_rows
from .edit import add_constant, copy_model, take_name
from .fusion import rectified
from .index import Index, list_names
from .layers import count_channels, last_layers
from .ops import CONVOLUTIONS
from .structure import STANDARD


def add_twins(
    model: ModelProto, layers: Sequence[LayerScheme], grids: Mapping[str, QParams]
) -> tuple[ModelProto, dict[str, tuple[str, ...]]]:
    """A copy of the model with a twin of every layer; returns it, and for each layer four tensors, or five.

    They are sums over each output channel, of the squared errors of the twin, of the layer's outputs and of their
    squares, and the number of all values of its output. The last convolutions have the sums of the squared errors with
    their outputs on 256 levels too. grids: of the inputs that are not rounded to 256 levels between the least and the
    largest of their values.
    """
    copy = copy_model(model)
    twins = _Twins(copy, grids)
    last = last_layers(model.graph, {layer.name for layer in layers})
    ends = {
        k.name for k in layers if k.op == "Conv" and k.name in last and rectified(twins.index, k.output) == k.output
    }
    return copy, {layer.name: twins.add(layer, last=layer.name in ends) for layer in layers}


class _Twins:
    """The graph that twins are added to, and the inputs that are rounded already."""

    def __init__(self, model: ModelProto, grids: Mapping[str, QParams]) -> None:
        graph = model.graph
        self.graph, self.index, self.grids = graph, Index(graph), grids
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in STANDARD)
        self.taken = list_names(model)
        self.rounded: dict[str, str] = {}
        self.by_row: dict[str, str] = {}

    def add(self, layer: LayerScheme, *, last: bool) -> tuple[str, ...]:
        """Add the twin of a layer, and the nodes that sum what it differs by; returns the tensors of the sums."""
        node, dims = self.index.nodes[layer.name], self.index.initializers[layer.weight].dims
        twin = NodeProto()
        twin.CopyFrom(node)
        rounded = self._round_rows(layer.input) if layer.dynamic else self._round(layer.input)
        twin.name, twin.input[0], twin.output[0] = "", rounded, self._name(node.output[0])
        self.graph.node.append(twin)
        own, (error,) = node.output[0], self._make("Sub", twin.output[0], node.output[0])
        axes = [0, *range(2, len(dims))]
        if node.op_type not in CONVOLUTIONS:
            shape = self._constant([-1, count_channels(node, dims)])
            (own,), (error,), axes = self._make("Reshape", own, shape), self._make("Reshape", error, shape), [0]
        over = self._constant(axes)
        summed = [*self._make("Mul", error, error), own, *self._make("Mul", own, own)]
        if last:
            (error,) = self._make("Sub", self._round(own), own)
            summed += self._make("Mul", error, error)
        sums = [self._make("ReduceSum", t, over, keepdims=0)[0] for t in summed]
        return (*sums[:3], *self._make("Size", own), *sums[3:])

    def _round_rows(self, tensor: str) -> str:
        """Each row on a grid of its own, as dynamic layers read it."""
        if tensor not in self.by_row:
            nodes, rows, peaks = round_rows(
                tensor, lambda _: self._name(tensor), lambda _, value: self._constant(value), self.opset
            )
            self.graph.node.extend(nodes)
            (self.by_row[tensor],) = self._make("Mul", rows, peaks)
        return self.by_row[tensor]

    def _round(self, tensor: str) -> str:
        if tensor not in self.rounded:
            if (grid := self.grids.get(tensor)) is None:
                made = self._make("DynamicQuantizeLinear", tensor, count=3)
            else:
                kind = np.int8 if grid.spec.signed else np.uint8
                scale, zero_point = self._constant(grid.scale), self._constant(grid.zero_point.astype(kind))
                made = [*self._make("QuantizeLinear", tensor, scale, zero_point), scale, zero_point]
            (self.rounded[tensor],) = self._make("DequantizeLinear", *made)
        return self.rounded[tensor]

    def _make(self, op: str, *inputs: str, count: int = 1, **attributes: Any) -> list[str]:
        made = [self._name(inputs[0]) for _ in range(count)]
        self.graph.node.append(helper.make_node(op, inputs, made, **attributes))
        return made

    def _constant(self, value: np.ndarray | Sequence[int]) -> str:
        return add_constant(self.graph, self._name("constant"), np.asarray(value))

    def _name(self, tensor: str) -> str:
        return take_name(f"{tensor}_twin", self.taken)
