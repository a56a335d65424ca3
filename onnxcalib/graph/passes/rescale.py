"""Let a Conv read ``factor x + shift`` by channel instead of x, which its weight and bias undo."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper

from ...spec import LayerScheme
from ..edit import add_constant, remove_nodes, reroute, take_name, write_operand
from ..extract import needed_inputs, needed_nodes
from ..index import Index, attribute_of, constant, is_op, known_constant, list_names
from ..ops import DEQUANTIZE, QUANTIZE, SHAPE_READERS
from .pads import Padding, add_pads, read_padding


def can_rescale(model: ModelProto, layer: LayerScheme) -> bool:
    """Whether ``rescale_input`` takes the layer: a Conv of one group with written pads that alone reads its input.

    Nothing else may read the tensors from which its input is computed either. Another reader could need a grid of its
    own for one of them, and the layer's input would be rounded twice.
    """
    index = Index(model.graph)
    before = needed_nodes(index, index.inputs, [layer.input])
    made = {t for node in model.graph.node if node.name in before for t in node.output if t}
    path = {layer.input, *made, *needed_inputs(index, index.inputs, [layer.input])}
    alone = path.isdisjoint(index.outputs) and all(_count_readers(index, t) <= 1 for t in path)
    written = attribute_of(index.nodes[layer.name], "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    return layer.op == "Conv" and layer.groups == 1 and written and alone


def _count_readers(index: Index, tensor: str) -> int:
    return sum(not is_op(node, *SHAPE_READERS) for node in index.readers(tensor))


def rescale_input(model: ModelProto, layer: LayerScheme, factor: np.ndarray, shift: np.ndarray) -> str:
    """Put a Mul and an Add in front of a Conv that ``can_rescale`` takes; mutates ``model``, returns the Add's output.

    With x' = f x + s by input channel, ``W x + b = (W / f) x' + b - sum(W s / f)``. There is no Mul if all factors are
    1. If the Conv pads with zeros, a Pad in front of the Mul does so instead: the Conv would pad with zeros of x', and
    not of x. factor, shift: (channels,).
    """
    index = Index(model.graph)
    node = index.nodes[layer.name]
    weight = known_constant(index, layer.weight)
    broadcast = (1, -1, *[1] * (weight.ndim - 2))
    scaled = weight.astype(np.float64) / factor.reshape(broadcast)
    bias = known_constant(index, layer.bias).astype(np.float64) if layer.bias else np.float64(0)
    bias = bias - (scaled * shift.reshape(broadcast)).sum(axis=tuple(range(1, weight.ndim)))
    write_operand(model.graph, index, node, 1, scaled.astype(np.float32))
    write_operand(model.graph, index, node, 2, bias.astype(np.float32))
    operands: dict[str, np.ndarray] = {}
    pads: list[int] = list(attribute_of(node, "pads", []))
    if any(pads):
        rank = len(pads) // 2
        operands["Pad"] = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
        _overwrite_pads(node, [0] * len(pads))
    if np.any(factor != 1):
        operands["Mul"] = factor.reshape(broadcast[1:]).astype(np.float32)
    # One value for all channels is added faster.
    one_value = not np.any(shift != shift[0])
    operands["Add"] = (shift[:1].reshape(()) if one_value else shift.reshape(broadcast[1:])).astype(np.float32)
    return _insert_before(model, node, operands)


def can_scale(index: Index, layer: LayerScheme) -> bool:
    """Whether ``scale_input`` takes the layer: a Conv, or a product with a matrix on its right."""
    node = index.nodes[layer.name]
    if list(node.input[:2]) != [layer.input, layer.weight] or layer.weight not in index.initializers:
        return False
    return layer.op == "Conv" or (layer.op in ("Gemm", "MatMul") and len(index.initializers[layer.weight].dims) == 2)


def scale_input(model: ModelProto, layer: LayerScheme, factor: np.ndarray) -> str:
    """Put a Mul in front of a layer that ``can_scale`` takes; mutates ``model``, returns the Mul's output.

    ``W x = (W / f) (f x)``, without an error where f are powers of two. factor: (channels,), those of axis 1 for a
    Conv, of the last axis otherwise.
    """
    index = Index(model.graph)
    undo_scale(model, index, layer, factor)
    node = index.nodes[layer.name]
    spatial = len(index.initializers[node.input[1]].dims) - 2
    operand = factor.reshape(-1, *[1] * spatial) if layer.op == "Conv" else factor
    return _insert_before(model, node, {"Mul": operand.astype(np.float32)})


def undo_scale(model: ModelProto, index: Index, layer: LayerScheme, factor: np.ndarray) -> None:
    """Divide the weight of a layer that ``can_scale`` takes by what its input's channels are multiplied by.

    Mutates ``model``, and brings its index up to date. factor: (channels,).
    """
    node = index.nodes[layer.name]
    weight = known_constant(index, node.input[1])
    if layer.op == "Conv":
        by_group = np.repeat((1 / factor).reshape(layer.groups, -1), len(weight) // layer.groups, axis=0)
        inverse = by_group.reshape(*by_group.shape, *[1] * (weight.ndim - 2))
    else:
        by_column = layer.op == "Gemm" and attribute_of(node, "transB", 0)
        inverse = 1 / factor if by_column else (1 / factor)[:, None]
    write_operand(model.graph, index, node, 1, (weight * inverse).astype(np.float32))


def fold_integer_pads(model: ModelProto) -> int:
    """Let Convs pad with the zero point where a Pad of zeros in front of their QuantizeLinear gives the same integers.

    Mul and Add of constants may stand between. onnxruntime has no fast kernel for the Pad. Returns how many Pads went.
    """
    folded = []
    for node in [node for node in model.graph.node if is_op(node, "Pad")]:
        index = Index(model.graph)
        padding = _read_zero_padding(index, node)
        readers = [] if padding is None else _find_padded(index, node, padding.pads.size // 2 - 2)
        totals = [] if padding is None else [pads for reader in readers if (pads := add_pads(reader, padding))]
        if not readers or len(totals) < len(readers):
            continue
        for reader, pads in zip(readers, totals, strict=True):
            _overwrite_pads(reader, pads)
        reroute(index.readers(node.output[0])[0], node.output[0], node.input[0])
        folded.append(node.name)
    remove_nodes(model, folded)
    return len(folded)


def _read_zero_padding(index: Index, node: NodeProto) -> Padding | None:
    """What a Pad of zeros with a value for every axis adds; None for other nodes."""
    padding = read_padding(index, node)
    if padding is None or padding.fill or padding.axes is not None or node.output[0] in index.outputs:
        return None
    return padding


def _overwrite_pads(node: NodeProto, pads: list[int]) -> None:
    """Write pads into the attribute that the node has."""
    next(attribute for attribute in node.attribute if attribute.name == "pads").ints[:] = pads


def _find_padded(index: Index, pad: NodeProto, rank: int) -> list[NodeProto]:
    """The Convs that read a Pad's output on a grid whose zero point stands for its zeros; none where others read it.

    rank: number of axes in space.
    """
    node, grid = pad, None
    value: np.ndarray | np.float32 = np.float32(0)
    while len(readers := index.readers(node.output[0])) == 1 and node.output[0] not in index.outputs:
        node, source = readers[0], node.output[0]
        if is_op(node, "Mul", "Add"):
            other = constant(index, next((name for name in node.input if name != source), ""))
            if other is None or other.ndim > rank + 1 or other.size > len(np.atleast_1d(other)):
                return []  # neither one value nor one a channel
            if other.ndim <= rank and other.size > 1:
                return []
            value = value * other if node.op_type == "Mul" else value + other
        elif is_op(node, QUANTIZE):
            scale = constant(index, node.input[1])
            if scale is None or scale.size != 1 or np.rint(value / scale).any():
                return []
            grid = _read_constants(index, node)
        elif is_op(node, DEQUANTIZE):
            convs = index.readers(node.output[0])
            alone = grid is not None and _read_constants(index, node) == grid and node.output[0] not in index.outputs
            return list(convs) if alone and all(_pads_input(conv, node.output[0]) for conv in convs) else []
        else:
            return []
    return []


def _read_constants(index: Index, node: NodeProto) -> list[object] | None:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear as plain values; None where one is no constant."""
    names = [name for name in node.input[1:3] if name in index.initializers]
    return None if len(names) < 2 else [known_constant(index, name).tolist() for name in names]


def _pads_input(node: NodeProto, tensor: str) -> bool:
    """Whether the node is a Conv with written pads of which this tensor is the input, and nothing else."""
    written = attribute_of(node, "auto_pad", b"NOTSET") == b"NOTSET" and attribute_of(node, "pads", None) is not None
    return is_op(node, "Conv") and written and node.input[0] == tensor and list(node.input).count(tensor) == 1


def _insert_before(model: ModelProto, node: NodeProto, operands: dict[str, np.ndarray]) -> str:
    """Put operators, each with its constant second operand, one behind the other in front of the node's first input.

    Returns the tensor that the node reads then.
    """
    taken = list_names(model)
    position = next(i for i, other in enumerate(model.graph.node) if other.name == node.name)
    source: str = node.input[0]
    for offset, (op, operand) in enumerate(operands.items()):
        name, constant_name, output = (
            take_name(f"{node.name}_{op}{kind}", taken) for kind in ("", "_operand", "_output")
        )
        add_constant(model.graph, constant_name, operand)
        model.graph.node.insert(position + offset, helper.make_node(op, [source, constant_name], [output], name=name))
        source = output
    node.input[0] = source
    return source
