"""Let a quantized subgraph read and give the integers of its ends, in place of the values that they stand for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, helper

from ..spec import QParams
from .edit import refill, replace_names, reroute
from .emit import type_of
from .index import is_op, list_names, reads
from .new_nodes import NewNodes
from .ops import DEQUANTIZE, QUANTIZE


def read_integers(model: ModelProto, grids: Mapping[str, QParams]) -> None:
    """Make these inputs of a QDQ model the integers on their grids; their QuantizeLinear is left out."""
    new, first = _name_anew(model), []
    made: dict[str, str] = {}  # what a QuantizeLinear that is left out gave -> the input
    for value in model.graph.input:
        tensor, grid = value.name, grids.get(value.name)
        if grid is None:
            continue
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(type_of(grid.spec))
        readers = [node for node in model.graph.node if tensor in reads(node)]
        made |= {node.output[0]: tensor for node in readers if is_op(node, QUANTIZE)}
        others = [node for node in readers if not is_op(node, QUANTIZE)]
        if others:
            values = new.name(f"{tensor}_values")
            first.append(new.node(DEQUANTIZE, [tensor, *_write_grid(new, tensor, grid)], values, tensor))
            for node in others:
                reroute(node, tensor, values)
    kept = [node for node in model.graph.node if not made.keys() & set(node.output)]
    for node in kept:
        replace_names(node.input, made)
    refill(model.graph.node, [*first, *kept])
    model.graph.initializer.extend(new.written)


def give_integers(model: ModelProto, grids: Mapping[str, QParams]) -> dict[str, str]:
    """Make these outputs of a model the integers on their grids; returns the new name of each."""
    new, names = _name_anew(model), {}
    for value in model.graph.output:
        if value.name in grids:
            grid, tensor = grids[value.name], value.name
            names[tensor] = new.name(f"{tensor}_integers")
            inputs = [tensor, *_write_grid(new, tensor, grid)]
            model.graph.node.append(new.node(QUANTIZE, inputs, names[tensor], tensor))
            value.name = names[tensor]
            value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(type_of(grid.spec))
    model.graph.initializer.extend(new.written)
    return names


def _name_anew(model: ModelProto) -> NewNodes:
    return NewNodes(list_names(model).union(*(node.input for node in model.graph.node)))


def _write_grid(new: NewNodes, tensor: str, grid: QParams) -> list[str]:
    """Names of a new scale and zero point."""
    zero = np.asarray(grid.zero_point).astype(type_of(grid.spec))
    return [new.constant(f"{tensor}_scale", np.asarray(grid.scale, np.float32)), new.constant(f"{tensor}_zero", zero)]
