"""Rotate channels of transformers: what the model computes stays.

Those of residual streams and of the values of attention's heads are rotated by the constants around, without another
operator. Those of what other norms and a feed-forward's activation function give are rotated by a MatMul, in blocks. In
float32 the outputs change by what rounding makes of other sums.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, helper

from ...spec import QuantScheme
from ..channel_norms import Operand
from ..edit import add_constant, remove_nodes, rename, reroute, take_name, write_operand
from ..heads import Heads
from ..index import Index, known_constant, list_names
from ..residual_stream import Norm, Reader, Stream
from .smooth import Smoothable, find_smoothable, smooth

# Neighbours that are mixed behind an activation function. (The layer behind has 16.6 dB with 16 at W4A4, in the mean of
# four of a ViT-S, 17.4 with 32, and 13.3 without; they take 0.06 and 0.11 of the time that it takes in float.)
BLOCK = 32
# Values of the weights that read mixed channels, at the least: the matrix takes a sixteenth of their bytes at 4 bits.
LEAST_WEIGHTS = 128 * BLOCK**2
ROTATED = "rotated"  # behind the name of a tensor that had other channels


def rotate_stream(model: ModelProto, stream: Stream, matrix: np.ndarray) -> None:
    """Let a stream hold ``x Q`` in place of x; mutates ``model``.

    Norms lose their scale to the layers that read them, and their shift where all of these can take it. Muls by channel
    in front of the stream go into the layers in front of them. matrix: orthogonal, (width, width), its rows sum to 1.
    """
    index, graph = Index(model.graph), model.graph
    for norm in stream.norms:
        _rotate_norm(graph, index, norm, matrix)
    for reader in stream.readers:
        _turn(graph, index, reader.weight, matrix)
    for writer in stream.writers:
        scale = np.ones(stream.width) if writer.scale is None else _read_factor(index, writer.scale)
        for operand in writer.operands:
            _turn(graph, index, operand, scale[:, None] * matrix)
    gone = [writer.scale for writer in stream.writers if writer.scale is not None]
    outside = set[str]()
    for name in gone:
        node = index.nodes[name]
        source = next(tensor for tensor in node.input if tensor not in index.initializers)
        for reader in index.readers(node.output[0]):
            reroute(reader, node.output[0], source)
        outside.add(node.output[0])
    remove_nodes(model, gone)
    _rename(model, [tensor for tensor in stream.tensors if tensor not in outside])


def rotate_heads(model: ModelProto, heads: Heads, matrix: np.ndarray) -> None:
    """Let the values of all heads hold ``v R`` in place of v; mutates ``model``.

    matrix: orthogonal, (channels of a head, channels of a head).
    """
    index, graph = Index(model.graph), model.graph
    for places, operands in ((heads.columns, heads.makers), (heads.rows, (heads.reader,))):
        for operand in operands:
            whole = np.eye(index.initializers[index.nodes[operand.node].input[operand.number]].dims[operand.axis])
            for each in places:
                whole[np.ix_(each, each)] = matrix
            _turn(graph, index, operand, whole)
    _rename(model, heads.tensors)


def find_rotatable(
    model: ModelProto, scheme: QuantScheme, streams: Collection[Stream] = (), encoding: str = "runtime"
) -> list[Smoothable]:
    """What layers read of whole blocks of channels, in a feed-forward or behind a norm that is on none of these.

    Weights that other nodes read too stay: a mixed copy would be another weight. So do those of small layers, which
    the matrix would make larger.
    """
    index = Index(model.graph)
    norms = {norm.made.node for stream in streams for norm in stream.norms}
    return [
        each
        for each in find_smoothable(model, scheme, encoding=encoding)
        if index.producer[each.tensor].name not in norms
        and all(index.initializers[layer.weight].dims[1 - layer.axis] % BLOCK == 0 for layer in each.layers)
        and all(len(index.readers(layer.weight)) == 1 for layer in each.layers)
        and sum(math.prod(index.initializers[layer.weight].dims) for layer in each.layers) >= LEAST_WEIGHTS
    ]


def rotate_input(model: ModelProto, chosen: Smoothable, factor: np.ndarray, matrix: np.ndarray, rank: int) -> str:
    """Let layers read ``(f x) M`` by blocks of channels in place of x; mutates ``model``.

    What makes x takes the factors where it can (``smooth``). factor: f, (channels,). matrix: M, orthogonal, (block,
    block); the block divides the channels. rank: that of x. Returns the name of the MatMul that turns.
    """
    smooth(model, chosen, factor)
    index, taken = Index(model.graph), list_names(model)
    nodes = [index.nodes[layer.name] for layer in chosen.layers]
    source, keep = nodes[0].input[0], [0] * (rank - 1)
    for layer in chosen.layers:
        _turn(model.graph, index, Operand(layer.name, 1, 1 - layer.axis), matrix)
    split, turn, join = (take_name(f"{source}_{ROTATED}_{end}", taken) for end in ("split", "turn", "join"))
    parts, turned, output = (take_name(f"{source}_{end}", taken) for end in ("parts", f"{ROTATED}_parts", ROTATED))
    shapes = {"parts_shape": [*keep, factor.size // len(matrix), len(matrix)], "shape": [*keep, factor.size]}
    operands = [
        add_constant(model.graph, take_name(f"{source}_{end}", taken), np.array(value, np.int64))
        for end, value in shapes.items()
    ]
    weight = add_constant(model.graph, take_name(f"{source}_matrix", taken), matrix.astype(np.float32))
    made = [
        helper.make_node("Reshape", [source, operands[0]], [parts], name=split),
        helper.make_node("MatMul", [parts, weight], [turned], name=turn),
        helper.make_node("Reshape", [turned, operands[1]], [output], name=join),
    ]
    first = min(index.position[node.name] for node in nodes)
    for node in nodes:
        reroute(node, source, output)
    for offset, node in enumerate(made):
        model.graph.node.insert(first + offset, node)
    return turn


def _turn(graph: GraphProto, index: Index, operand: Operand, matrix: np.ndarray) -> None:
    """Multiply a constant along the axis of its channels, or blocks of these, by a matrix."""
    node = index.nodes[operand.node]
    moved = np.moveaxis(known_constant(index, node.input[operand.number]).astype(np.float64), operand.axis, -1)
    turned = (moved.reshape(*moved.shape[:-1], -1, len(matrix)) @ matrix).reshape(moved.shape)
    _write(graph, index, operand, np.moveaxis(turned, -1, operand.axis))


def _write(graph: GraphProto, index: Index, operand: Operand, value: np.ndarray) -> None:
    node = index.nodes[operand.node]
    write_operand(graph, index, node, operand.number, np.ascontiguousarray(value, dtype=np.float32))


def _read_factor(index: Index, name: str) -> np.ndarray:
    """The constant factor of a Mul, (channels,)."""
    known = next(tensor for tensor in index.nodes[name].input if tensor in index.initializers)
    return known_constant(index, known).astype(np.float64).reshape(-1)


def _rotate_norm(graph: GraphProto, index: Index, norm: Norm, matrix: np.ndarray) -> None:
    """Move a norm's scale, and its shift where this can be, into its readers, which undo the rotation."""
    scale, shift = (
        None if operand is None else _read_operand(index, operand) for operand in (norm.made.scale, norm.made.shift)
    )
    moved = shift is not None and bool(shift.any()) and all(reader.bias is not None for reader in norm.readers)
    if moved and shift is not None:
        for reader in norm.readers:
            _add_bias(graph, index, reader, shift)
    undo = matrix if scale is None else scale[:, None] * matrix
    for reader in norm.readers:
        _turn(graph, index, reader.weight, undo)
    if norm.made.scale is not None and scale is not None:
        ones = np.ones(index.initializers[index.nodes[norm.made.scale.node].input[norm.made.scale.number]].dims)
        _write(graph, index, norm.made.scale, ones)
        if norm.made.shift is not None and shift is not None:
            kept = shift / np.where(scale == 0, np.inf, scale) if not moved else np.zeros_like(shift)
            _write(graph, index, norm.made.shift, kept @ matrix)


def _read_operand(index: Index, operand: Operand) -> np.ndarray:
    """A constant of channels, (channels,)."""
    name = index.nodes[operand.node].input[operand.number]
    return known_constant(index, name).astype(np.float64).reshape(-1)


def _add_bias(graph: GraphProto, index: Index, reader: Reader, shift: np.ndarray) -> None:
    """Add to what a layer adds what it makes of a constant input."""
    assert reader.bias is not None
    weight = known_constant(index, index.nodes[reader.weight.node].input[reader.weight.number]).astype(np.float64)
    made = np.tensordot(shift, weight, axes=(0, reader.weight.axis))
    node, number = index.nodes[reader.bias.node], reader.bias.number
    before = known_constant(index, node.input[number]) if len(node.input) > number and node.input[number] else 0.0
    _write(graph, index, reader.bias, before + made)


def _rename(model: ModelProto, tensors: Sequence[str]) -> None:
    """Give tensors other names, as they are no longer those of the model that was given."""
    taken = list_names(model)
    rename(model.graph, {tensor: take_name(f"{tensor}_{ROTATED}", taken) for tensor in tensors})
