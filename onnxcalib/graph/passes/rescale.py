"""Let a Conv read its input in other units: ``factor x + shift`` by channel, undone in its weight and bias."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ...spec import LayerScheme
from ..edit import remove_nodes, reroute, unused_name, write_operand
from ..extract import needed_inputs, needed_nodes
from ..index import Index, attribute_of, constant, is_op, list_names
from ..ops import SHAPE_READERS
from .pads import read_padding


def can_rescale(model: ModelProto, layer: LayerScheme) -> bool:
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


def rescale_input(model: ModelProto, layer: LayerScheme, factor: np.ndarray, shift: np.ndarray) -> str:
    """Put a Mul and an Add in front of a Conv that ``can_rescale`` takes; mutates ``model``, gives the Add's output.

    There is no Mul where all factors are 1. With x' = f x + s per input channel, ``W x + b = (W / f) x' + b - sum(W s /
    f)``. Where the Conv pads with zeros, a Pad in front of the Mul does so in its place: its own would be zeros of x',
    not of x. factor, shift: (channels,).
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
    if np.any(factor != 1):
        operands["Mul"] = factor.reshape(broadcast[1:]).astype(np.float32)
    # One value for all channels is added faster.
    operands["Add"] = (shift.reshape(broadcast[1:]) if np.any(shift != shift[0]) else shift[0]).astype(np.float32)
    _insert_before(model, node, operands)
    return node.input[0]


def fold_integer_pads(model: ModelProto) -> int:
    """Let Convs pad with the zero point where a Pad of zeros in front of their QuantizeLinear comes to the same.

    Mul and Add of constants may stand between. The integers are equal; onnxruntime has no fast kernel for the Pad.
    Returns how many Pads are gone.
    """
    spent = []
    for node in [node for node in model.graph.node if is_op(node, "Pad")]:
        index = Index(model.graph)
        pads = _read_zero_pads(index, node)
        readers = _find_padded(index, node, len(pads) // 2) if pads else []
        if not readers:
            continue
        for reader in readers:
            own = next(attribute for attribute in reader.attribute if attribute.name == "pads")
            own.ints[:] = [one + other for one, other in zip(own.ints, pads, strict=True)]
        reroute(index.readers(node.output[0])[0], node.output[0], node.input[0])
        spent.append(node.name)
    remove_nodes(model, spent)
    return len(spent)


def _read_zero_pads(index: Index, node: NodeProto) -> list[int] | None:
    """Begins, then ends, in space alone, of a Pad of zeros; None for other nodes."""
    padding = read_padding(index, node)
    if padding is None or padding.fill or padding.axes is not None or node.output[0] in index.outputs:
        return None
    begins, ends = padding.pads.reshape(2, -1)
    return None if (*begins[:2], *ends[:2]) != (0, 0, 0, 0) else [*begins[2:].tolist(), *ends[2:].tolist()]


def _find_padded(index: Index, pad: NodeProto, rank: int) -> list[NodeProto]:
    """The Convs that read a Pad's output on a grid whose zero point stands for its zeros; none where others do too.

    rank: axes in space.
    """
    node, value, grid = pad, np.float32(0), None
    while len(readers := index.readers(node.output[0])) == 1 and node.output[0] not in index.outputs:
        node, source = readers[0], node.output[0]
        if is_op(node, "Mul", "Add"):
            other = constant(index, next((name for name in node.input if name != source), ""))
            if other is None or other.ndim > rank + 1 or other.size > len(np.atleast_1d(other)):
                return []  # neither one value nor one of each channel
            if other.ndim <= rank and other.size > 1:
                return []
            value = value * other if node.op_type == "Mul" else value + other
        elif is_op(node, "QuantizeLinear"):
            scale = constant(index, node.input[1])
            if scale is None or scale.size != 1 or np.rint(value / scale).any():
                return []
            grid = _read_constants(index, node)
        elif is_op(node, "DequantizeLinear"):
            convs = index.readers(node.output[0])
            alone = grid is not None and _read_constants(index, node) == grid and node.output[0] not in index.outputs
            return list(convs) if alone and all(_pads_input(conv, node.output[0]) for conv in convs) else []
        else:
            return []
    return []


def _read_constants(index: Index, node: NodeProto) -> tuple | None:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear as plain values; None where it lacks one of them."""
    values = [constant(index, name) for name in node.input[1:3]]
    return None if len(values) < 2 or any(v is None for v in values) else tuple(v.tolist() for v in values)


def _pads_input(node: NodeProto, tensor: str) -> bool:
    """Whether the node is a Conv with pads in numbers whose input, and nothing else, is this tensor."""
    plain = attribute_of(node, "auto_pad", b"NOTSET") == b"NOTSET" and attribute_of(node, "pads", None) is not None
    return is_op(node, "Conv") and plain and node.input[0] == tensor and list(node.input).count(tensor) == 1


def _find_node(model: ModelProto, layer: LayerScheme) -> NodeProto:
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
