"""Write the shapes that Reshapes are given as constants, also where one or several sizes are not fixed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorShapeProto

from ..edit import write_operand
from ..index import Index, attribute_of, constant, is_op
from ..shapes import infer_graph
from .fold import fold_constants

KEEP, REST = 0, -1  # what Reshape takes for the size of the input's axis of that number, and for what is left


def fix_target_shapes(model: ModelProto) -> int:
    """Make the shape of each Reshape that a Concat puts together a constant where that is possible; returns the count.

    A size that is the input's at the same axis becomes 0, and one other that is not fixed -1. Exporters compute such
    shapes from the sizes of other tensors, which onnxruntime does not see through once these are quantized. It then
    knows no shapes, without which it fuses less. Constants that follow are folded.
    """
    total = 0
    # What one Reshape gives is often what the next reads its sizes from.
    while count := _fix_once(model, guess=False) or _fix_once(model, guess=True):
        total += count
        fold_constants(model)
    return total


def _fix_once(model: ModelProto, *, guess: bool) -> int:
    """One round; with ``guess`` of Reshapes of inputs of unknown shape too, for which -1 is all that can be written."""
    index = Index(model.graph)
    shaped = [node for node in model.graph.node if is_op(node, "Reshape") and _is_joined(index, node)]
    graph = infer_graph(model) if shaped else None
    values = () if graph is None else (*graph.input, *graph.value_info, *graph.output)
    shapes = {v.name: v.type.tensor_type.shape for v in values if v.type.tensor_type.HasField("shape")}
    count = 0
    for node in shaped:
        target = _read_target(index, node, shapes) if guess or node.input[0] in shapes else None
        if target is not None:
            write_operand(model.graph, index, node, 1, np.array(target, np.int64))
            count += 1
    return count


def _is_joined(index: Index, node: NodeProto) -> bool:
    maker = index.producer.get(node.input[1])
    return maker is not None and is_op(maker, "Concat") and not attribute_of(node, "allowzero", 0)


def _read_target(index: Index, node: NodeProto, shapes: Mapping[str, TensorShapeProto]) -> list[int] | None:
    """The sizes as a constant; None where several depend on what is computed."""
    sizes: list[int | None] = []
    for name in index.producer[node.input[1]].input:
        value = constant(index, name)
        if value is not None:
            sizes.extend(int(size) for size in value.reshape(-1))
        elif name in shapes and [d.dim_value for d in shapes[name].dim] == [1]:
            sizes.append(None)
        else:
            return None
    before, after = (shapes[t].dim if t in shapes else () for t in (node.input[0], node.output[0]))
    if len(after) == len(sizes):
        pairs = enumerate(zip(before, after, strict=False))
        kept = [axis for axis, (b, a) in pairs if sizes[axis] is None and a.dim_param and a.dim_param == b.dim_param]
        sizes = [KEEP if axis in kept else size for axis, size in enumerate(sizes)]
    if sizes.count(None) + sizes.count(REST) > 1:
        return None
    rest = KEEP if None in sizes and _is_alone(sizes, before, sizes.index(None)) else REST
    return [rest if size is None else size for size in sizes]


def _is_alone(sizes: list[int | None], before: Sequence[TensorShapeProto.Dimension], axis: int) -> bool:
    """Whether the size that is not fixed is the input's at the same axis, as all others have the same product."""
    fixed = [d.dim_value for number, d in enumerate(before) if number != axis]
    others = [size for size in sizes if size is not None]
    return len(before) > axis and min(fixed + others, default=1) > 0 and math.prod(fixed) == math.prod(others)
