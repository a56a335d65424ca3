"""Rotate the channels of residual streams, and of the values of attention's heads: what the model computes stays.

The matrices are folded into the constants around, so that no operator is added. In float32 the outputs change by what
rounding makes of other sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto

from ..edit import remove_nodes, rename, reroute, take_name, write_operand
from ..heads import Heads
from ..index import Index, known_constant, list_names
from ..residual_stream import Norm, Operand, Reader, Stream

ROTATED = "rotated"  # behind the name of a tensor that had other channels


def rotate_stream(model: ModelProto, stream: Stream, matrix: np.ndarray) -> None:
    """Let a stream hold ``x Q`` in place of x; mutates ``model``.

    Norms lose their scale to the layers that read them, and their shift where all of these can take it. Muls by channel
    in front of the stream go into the layers in front of them. matrix: orthogonal, (width, width), its rows sum to 1.
    """
    index, edit = Index(model.graph), _Edit(model)
    for norm in stream.norms:
        _rotate_norm(index, edit, norm, matrix)
    for reader in stream.readers:
        edit.turn(index, reader.weight, matrix)
    for writer in stream.writers:
        scale = np.ones(stream.width) if writer.scale is None else edit.read_factor(index, writer.scale)
        for operand in writer.operands:
            edit.turn(index, operand, scale[:, None] * matrix)
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
    index, edit = Index(model.graph), _Edit(model)
    for places, operands in ((heads.columns, heads.makers), (heads.rows, (heads.reader,))):
        for operand in operands:
            whole = np.eye(index.initializers[index.nodes[operand.node].input[operand.number]].dims[operand.axis])
            for each in places:
                whole[np.ix_(each, each)] = matrix
            edit.turn(index, operand, whole)
    _rename(model, heads.tensors)


class _Edit:
    """Writes constants of a model anew."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph

    def turn(self, index: Index, operand: Operand, matrix: np.ndarray) -> None:
        """Multiply a constant along the axis of its channels: channel j becomes the sum of i times ``matrix[i, j]``."""
        node = index.nodes[operand.node]
        value = known_constant(index, node.input[operand.number]).astype(np.float64)
        turned = np.moveaxis(np.moveaxis(value, operand.axis, -1) @ matrix, -1, operand.axis)
        self.write(index, operand, turned)

    def write(self, index: Index, operand: Operand, value: np.ndarray) -> None:
        node = index.nodes[operand.node]
        write_operand(self.graph, index, node, operand.number, np.ascontiguousarray(value, dtype=np.float32))

    def read_factor(self, index: Index, name: str) -> np.ndarray:
        """The constant factor of a Mul, (channels,)."""
        known = next(tensor for tensor in index.nodes[name].input if tensor in index.initializers)
        return known_constant(index, known).astype(np.float64).reshape(-1)


def _rotate_norm(index: Index, edit: _Edit, norm: Norm, matrix: np.ndarray) -> None:
    """Move a norm's scale, and its shift where this can be, into its readers, which undo the rotation."""
    node = index.nodes[norm.node]
    scale = known_constant(index, node.input[1]).astype(np.float64).reshape(-1)
    shift = None
    if len(node.input) > 2 and node.input[2]:
        shift = known_constant(index, node.input[2]).astype(np.float64).reshape(-1)
    moved = shift is not None and bool(shift.any()) and all(reader.bias is not None for reader in norm.readers)
    if moved and shift is not None:
        for reader in norm.readers:
            _add_bias(index, edit, reader, shift)
    undo = scale[:, None] * matrix
    for reader in norm.readers:
        edit.turn(index, reader.weight, undo)
    edit.write(index, Operand(norm.node, 1, 0), np.ones(scale.shape))
    if shift is not None:
        kept = np.zeros_like(shift) if moved else np.divide(shift, scale, out=np.zeros_like(shift), where=scale != 0)
        edit.write(index, Operand(norm.node, 2, 0), kept @ matrix)


def _add_bias(index: Index, edit: _Edit, reader: Reader, shift: np.ndarray) -> None:
    """Add to what a layer adds what it makes of a constant input."""
    assert reader.bias is not None
    weight = known_constant(index, index.nodes[reader.weight.node].input[reader.weight.number]).astype(np.float64)
    made = np.tensordot(shift, weight, axes=(0, reader.weight.axis))
    node, number = index.nodes[reader.bias.node], reader.bias.number
    before = known_constant(index, node.input[number]) if len(node.input) > number and node.input[number] else 0.0
    edit.write(index, reader.bias, before + made)


def _rename(model: ModelProto, tensors: Sequence[str]) -> None:
    """Give tensors other names, as they are no longer those of the model that was given."""
    taken = list_names(model)
    rename(model.graph, {tensor: take_name(f"{tensor}_{ROTATED}", taken) for tensor in tensors})
