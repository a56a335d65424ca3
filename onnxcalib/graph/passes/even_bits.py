"""Let operators that compute in one width read and give activations of as many bits, where a plan gave them two."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ...spec import QuantSpec
from ..edit import drop_dead, refill, replace_names
from ..index import constant, is_op, list_names
from ..inspect.grids import NARROW, WIDE, Grid, GriddedGraph, GriddedLayer, list_sides
from ..new_nodes import NewNodes
from ..ops import DEQUANTIZE, QUANTIZE

WIDER = {"uint8": TensorProto.UINT16, "int8": TensorProto.INT16}
# A step of 8 bits has as many of the grid of 16 bits that holds it.
STEPS = 2**8


def even_bits(model: ModelProto, operators: Collection[str]) -> int:
    """Change grids around those of these operators that have 8 bits on one side and 16 on another; returns how many.

    What such a node reads in 8 bits goes through a grid of 16 that has each of its steps, so that no value moves. What
    it gives in 8 bits is given in 16 first, on such a grid, and a QuantizeLinear of 8 rounds it again. A bias of int32
    keeps its value, and has the steps of the new input; a node where it would overflow stays. For quantized graphs.
    """
    if not any(tensor.data_type in (TensorProto.UINT16, TensorProto.INT16) for tensor in model.graph.initializer):
        return 0
    writer = _Writer(model)
    count = sum(writer.even(node) for node in model.graph.node if is_op(node, *operators))
    if count:
        writer.finish()
    return count


class _Writer:
    """before: name of a node -> the new nodes in front of it. wide: tensor of 8 bits -> the same one of 16."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.graph = GriddedGraph(model.graph, model)
        self.new = NewNodes(list_names(model))
        self.before: dict[str, list[NodeProto]] = {}
        self.wide: dict[str, str] = {}
        self.layers = {layer.node.name: layer for layer in self.graph.layers()}

    def even(self, node: NodeProto) -> bool:
        """Whether the node's sides had unlike bits, and have 16 each now."""
        sides = list_sides(self.graph, node)
        kinds = {grid.type for grid in sides}
        if kinds.isdisjoint(WIDE) or kinds.isdisjoint(NARROW) or not all(map(_is_whole, sides)):
            return False
        *fed, made = sides
        layer = self.layers.get(node.name)
        narrow = [grid for grid in fed if grid.type in NARROW]
        if layer is not None and layer.bias is not None and layer.input in narrow and not self._refine_bias(layer):
            return False
        for grid in narrow:
            replace_names(node.input, {grid.tensor: self._widen_input(node, grid)})
        if made.type in NARROW:
            self._widen_output(made)
        return True

    def _widen_input(self, node: NodeProto, grid: Grid) -> str:
        if grid.tensor not in self.wide:
            name = self.new.name(f"{grid.tensor}_wide")
            self.before.setdefault(node.name, []).extend(self._write_pair(grid, grid.tensor, name))
            self.wide[grid.tensor] = name
        return self.wide[grid.tensor]

    def _widen_output(self, made: Grid) -> None:
        name = self.new.name(f"{made.tensor}_wide")
        self.before.setdefault(made.node.name, []).extend(self._write_pair(made, made.tensor, name))
        made.node.input[0] = name

    def _write_pair(self, grid: Grid, source: str, name: str) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear on the grid of 16 bits that has each step of this one."""
        assert grid.scale is not None and grid.zero_point is not None  # see _is_whole
        kind = helper.tensor_dtype_to_np_dtype(WIDER[grid.type])
        scale = (grid.scale.reshape(()) / np.float32(STEPS)).astype(np.float32)
        zero = (grid.zero_point.reshape(()) * STEPS).astype(kind)
        ends = [(source, f"{name}_quantized"), (self.new.name(f"{name}_quantized"), name)]
        nodes = []
        for (read, given), op in zip(ends, (QUANTIZE, DEQUANTIZE), strict=True):
            operands = [self.new.constant(f"{given}_scale", scale), self.new.constant(f"{given}_zero_point", zero)]
            nodes.append(self.new.node(op, [read, *operands], given, name))
        return nodes

    def _refine_bias(self, layer: GriddedLayer) -> bool:
        """Give a bias of int32 the steps of the wider input; whether they hold it."""
        assert layer.bias is not None
        node = layer.bias.node
        held, scale = (constant(self.graph.index, name) for name in node.input[:2])
        if held is None or scale is None:
            return False
        finer = held.astype(np.int64) * STEPS
        if np.abs(finer).max(initial=0) > np.iinfo(np.int32).max:
            return False
        spec = QuantSpec(32, axis=layer.bias.axis)
        name = self.new.name(f"{layer.bias.tensor}_wide")
        stored = self.new.constant(f"{name}_quantized", finer.astype(np.int32))
        zero = np.zeros((), np.int32)
        finer_scale = scale.astype(np.float32) / np.float32(STEPS)
        self.before.setdefault(layer.node.name, []).append(self.new.dequantize(name, stored, finer_scale, zero, spec))
        replace_names(layer.node.input, {layer.bias.tensor: name})
        return True

    def finish(self) -> None:
        graph = self.model.graph
        refill(graph.node, [each for node in graph.node for each in (*self.before.get(node.name, ()), node)])
        graph.initializer.extend(self.new.written)
        drop_dead(self.model)


def _is_whole(grid: Grid) -> bool:
    """Whether a grid is constant, and one for the whole tensor."""
    scale, zero = grid.scale, grid.zero_point
    return scale is not None and zero is not None and scale.size == 1 and zero.size == 1
