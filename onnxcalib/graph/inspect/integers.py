"""The integer tensors of a quantized graph: which operators make them, and copies of the graph that give them out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..edit import copy_model, refill, reroute
from ..fusion import is_power_of_two, leads_to_concat
from ..index import Index, attribute_of, constant, index_graphs, is_op
from ..ops import DEQUANTIZE, QUANTIZE

# Integer types that NumPy has; those of 4 bits, which it has not, are cast to 8 bits to be fed or given out.
FED: tuple[int, ...] = (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16)
NIBBLES: dict[int, int] = {TensorProto.UINT4: TensorProto.UINT8, TensorProto.INT4: TensorProto.INT8}
GIVEN = "given:"
# QuantizeLinear and DequantizeLinear had 16 bits in onnxruntime's own domain before ONNX had them.
LINEAR_DOMAINS = ("", "com.microsoft")
# Operators between a QuantizeLinear and its DequantizeLinear that leave the grid as it is.
BETWEEN = ("Clip", "Cast", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity")


@dataclass(frozen=True)
class Integers:
    """One integer tensor: its element type, and the operator whose result it holds (``input`` for a graph input)."""

    tensor: str
    type: int
    op: str


def find_integers(model: ModelProto) -> tuple[Integers, ...]:
    """The tensors of 16, 8 and 4 bits that QuantizeLinear and the QLinear operators compute, in graph order.

    Quantized constants are left out.
    """
    index = Index(model.graph)
    found = []
    for node in model.graph.node:
        number = _zero_point_number(node)
        if number is None or _is_constant(index, node.input[0]):
            continue
        kind = element_type(index, node, number)
        if kind in FED or kind in NIBBLES:
            source = index.producer.get(node.input[0]) if is_linear(node, QUANTIZE) else node
            found.append(Integers(node.output[0], kind, source.op_type if source else "input"))
    return tuple(found)


def is_linear(node: NodeProto, *kinds: str) -> bool:
    """Whether the node is one of these, QuantizeLinear or DequantizeLinear, of one of the domains that have them."""
    return node.domain in LINEAR_DOMAINS and node.op_type in kinds


def element_type(index: Index, node: NodeProto, zero_point: int = 2) -> int:
    """The type of the integers that a node makes, which is the type of their zero point.

    zero_point: its number among the node's inputs. Without a zero point the type is the node's attribute, or uint8, the
    default of QuantizeLinear.
    """
    name = node.input[zero_point] if len(node.input) > zero_point else ""
    if name in index.initializers:
        return int(index.initializers[name].data_type)
    if name and _is_constant(index, name):
        return int(attribute_of(index.producer[name], "value", TensorProto()).data_type)
    return attribute_of(node, "output_dtype", 0) or int(TensorProto.UINT8)


def _is_constant(index: Index, tensor: str) -> bool:
    producer = index.producer.get(tensor)
    return tensor in index.initializers or (producer is not None and is_op(producer, "Constant"))


def _zero_point_number(node: NodeProto) -> int | None:
    """Number of the node's input that is its output's zero point; None for nodes that make no integers."""
    if is_linear(node, QUANTIZE):
        return 2
    if node.op_type in ("QLinearConv", "QLinearMatMul"):
        return 7
    if node.op_type == "QGemm":
        return 8 if len(node.input) > 8 and node.input[8] else None  # without it the output is float
    return len(node.input) - 1 if node.op_type.startswith("QLinear") else None


def give_integers(model: ModelProto, integers: Iterable[Integers]) -> ModelProto:
    """A copy that has these tensors as outputs, cast to 8 bits if they have 4, and no others."""
    copy = copy_model(model)
    del copy.graph.output[:]
    for each in integers:
        name = each.tensor
        if each.type in NIBBLES:
            name = f"{GIVEN}{each.tensor}:bytes"
            copy.graph.node.append(helper.make_node("Cast", [each.tensor], [name], to=NIBBLES[each.type]))
        copy.graph.output.append(helper.make_tensor_value_info(name, NIBBLES.get(each.type, each.type), None))
    return copy


def open_at(model: ModelProto, integers: Iterable[Integers]) -> ModelProto:
    """As ``give_integers``, and the readers of each tensor read a graph input instead, named GIVEN + the tensor."""
    integers = tuple(integers)
    copy = give_integers(model, integers)
    index = Index(copy.graph)
    casts = []
    for each in integers:
        readers = [node for node in index.readers(each.tensor) if not node.output[0].startswith(GIVEN)]
        if not readers:
            continue
        given = read = f"{GIVEN}{each.tensor}"
        if each.type in NIBBLES:
            read = f"{given}:nibbles"
            casts.append(helper.make_node("Cast", [given], [read], to=each.type))
        copy.graph.input.append(helper.make_tensor_value_info(given, NIBBLES.get(each.type, each.type), None))
        for node in readers:
            reroute(node, each.tensor, read)
    refill(copy.graph.node, [*casts, *copy.graph.node])
    return copy


def find_mismatches(model: ModelProto) -> tuple[str, ...]:
    """Tensors, those of bodies included, that a QuantizeLinear puts on another grid than a DequantizeLinear reads.

    A tensor that is read on its own grid may be read on a multiple of it too, for a constant to be added: see
    ``graph.gates``. One that is joined to others may be read on a power of two times its scale, which the layers behind
    undo: see ``even_joins`` of ``graph.passes``.
    """
    found = []
    for graph, index in index_graphs(model.graph):
        for node in filter(lambda node: is_linear(node, QUANTIZE), graph.node):
            own, readers = _read_grid(index, node), list(_dequantizers(index, node.output[0]))
            readers = [reader for reader in readers if not _is_scaled_for_concat(index, reader, own)]
            others = [reader for reader in readers if _differ(own, _read_grid(index, reader))]
            multiples = [each for each in others if _is_scaled_for_add(index, each, own)]
            if len(others) > len(multiples) or len(others) == len(readers) > 0:
                found.append(node.input[0])
    return tuple(dict.fromkeys(found))


def _dequantizers(index: Index, tensor: str) -> Iterator[NodeProto]:
    waiting = [tensor]
    for name in waiting:  # which grows
        for node in index.readers(name):
            if is_linear(node, DEQUANTIZE) and node.input[0] == name:
                yield node
            elif is_op(node, *BETWEEN) and node.input[0] == name:
                waiting.append(node.output[0])


def _is_scaled_for_add(index: Index, node: NodeProto, own: _Grid) -> bool:
    """Whether a DequantizeLinear keeps the zero point, and only Adds of a quantized constant read what it gives."""
    readers = index.readers(node.output[0])
    return (
        bool(readers)
        and not _differ(own, _Grid(None, _read_grid(index, node).zero_point))
        and all(
            is_op(reader, "Add") and any(_is_quantized_constant(index, t) for t in reader.input) for reader in readers
        )
    )


def _is_scaled_for_concat(index: Index, node: NodeProto, own: _Grid) -> bool:
    """Whether a DequantizeLinear keeps the zero point, has a power of two times the scale, and leads to a Concat."""
    scale = _read_grid(index, node).scale
    if own.scale is None or scale is None or own.scale.size != 1 or scale.size != 1:
        return False
    like = not _differ(own, _Grid(None, _read_grid(index, node).zero_point)) and own.scale.item() > 0
    return like and is_power_of_two(scale.item() / own.scale.item()) and leads_to_concat(index, node.output[0])


def _is_quantized_constant(index: Index, tensor: str) -> bool:
    node = index.producer.get(tensor)
    return node is not None and is_linear(node, DEQUANTIZE) and node.input[0] in index.initializers


class _Grid(NamedTuple):
    """Scale and zero point, None where they are computed."""

    scale: np.ndarray | None
    zero_point: np.ndarray | None


def _read_grid(index: Index, node: NodeProto) -> _Grid:
    """The grid of a QuantizeLinear or DequantizeLinear; a zero point that is left out is 0."""
    scale = constant(index, node.input[1])
    if len(node.input) < 3 or not node.input[2]:
        return _Grid(scale, None if scale is None else np.zeros_like(scale, np.int32))
    zero_point = constant(index, node.input[2])
    return _Grid(scale, None if zero_point is None else zero_point.astype(np.int32))


def _differ(one: _Grid, other: _Grid) -> bool:
    """Whether what is known of both grids differs."""
    known = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return any(not np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in known)
