"""Let a Conv read its input in other units: ``factor x + shift`` by channel, undone in its weight and bias."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ..spec import LayerPlan
from .extract import needed_inputs, needed_nodes
from .fusion import SHAPE_READERS
from .index import Index, attribute_of, constant, is_op, list_names
from .normalise import unused_name
from .operand import write_operand


def can_rescale(model: ModelProto, layer: LayerPlan) -> bool:
    """Whether ``rescale_input`` takes the layer: a Conv of one group, its pads in numbers, alone behind its inputs.

    Any other reader of its input, or of what that is made from, may keep it on a grid, so that it is rounded twice.
    """
    index = Index(model.graph)
    before = needed_nodes(index, index.inputs, [layer.input])
    made = {t for node in model.graph.node if node.name in before for t in node.output if t}
    path = {layer.input, *made, *needed_inputs(index, index.inputs, [layer.input])}
    alone = path.isdisjoint(index.outputs) and all(_count_readers(index, t) <= 1 for t in path)
    plain = attribute_of(_find_node(model, layer), "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return layer.op == "Conv" and layer.groups == 1 and plain and alone


def _count_readers(index: Index, tensor: str) -> int:
    return sum(not is_op(node, *SHAPE_READERS) for node in index.readers(tensor))


def rescale_input(model: ModelProto, layer: LayerPlan, factor: np.ndarray, shift: np.ndarray) -> str:
    """Put a Mul and an Add in front of a Conv that ``can_rescale`` takes; mutates ``model``, gives the Add's output.

    With x' = f x + s per input channel, ``W x + b = (W / f) x' + b - sum(W s / f)``. Where the Conv pads with zeros, a
    Pad in front of the Mul does so in its place: its own would be zeros of x', not of x. factor, shift: (channels,).
    """
    index = Index(model.graph)
    node = _find_node(model, layer)
    weight = constant(index, layer.weight)
    broadcast = (1, -1, *[1] * (weight.ndim - 2))
    scaled = weight.astype(np.float64) / factor.reshape(broadcast)
    bias = constant(index, layer.bias).astype(np.float64) if layer.bias else 0.0
    bias = bias - (scaled * shift.reshape(broadcast)).sum(axis=tuple(range(1, weight.ndim)))
    write_operand(model.graph, index, node, 1, scaled.astype(np.float32))
    write_operand(model.graph, index, node, 2, bias.astype(np.float32))
    operands: dict[str, np.ndarray] = {}
    pads = list(attribute_of(node, "pads", []))
    if any(pads):
        half = len(pads) // 2
        operands["Pad"] = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], np.int64)
        next(a for a in node.attribute if a.name == "pads").ints[:] = [0] * len(pads)
    operands["Mul"], operands["Add"] = (value.reshape(broadcast[1:]).astype(np.float32) for value in (factor, shift))
    _insert_before(model, node, operands)
    return node.input[0]


def _find_node(model: ModelProto, layer: LayerPlan) -> NodeProto:
    return next(node for node in model.graph.node if node.name == layer.name)


def _insert_before(model: ModelProto, node: NodeProto, operands: dict[str, np.ndarray]) -> None:
    """Put operators, each with its constant second operand, one after the other in front of the node's first input."""
    taken = list_names(model)
    place = next(i for i, other in enumerate(model.graph.node) if other.name == node.name)
    for offset, (op, operand) in enumerate(operands.items()):
        names = [unused_name(f"{node.name}_{op}{kind}", taken) for kind in ("", "_operand", "_output")]
        taken.update(names)
        model.graph.initializer.append(numpy_helper.from_array(operand, names[1]))
        made = helper.make_node(op, [node.input[0], names[1]], [names[2]], name=names[0])
        model.graph.node.insert(place + offset, made)
        node.input[0] = names[2]
