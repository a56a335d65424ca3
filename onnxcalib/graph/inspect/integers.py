"""The integer tensors of a quantized graph: where they are made, and the graph opened at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from ..edit import reroute
from ..index import Index, attribute_of, constant, is_op

# Types that a graph input can have; those of 4 bits are cast to 8, as they cannot be fed from NumPy.
FED = (TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16)
NIBBLES = {TensorProto.UINT4: TensorProto.UINT8, TensorProto.INT4: TensorProto.INT8}
GIVEN = "given:"
# QuantizeLinear and DequantizeLinear had 16 bits in onnxruntime's own domain before ONNX had them.
LINEAR_DOMAINS = ("", "com.microsoft")
# What may stand between a QuantizeLinear and its DequantizeLinear without a change of grid.
BETWEEN = ("Clip", "Cast", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "MaxPool", "Identity")


@dataclass(frozen=True)
class Integers:
    """One integer tensor: the element type, and the operator whose result it holds (``input`` for a graph input)."""

    tensor: str
    type: int
    op: str


def find_integers(model: ModelProto) -> tuple[Integers, ...]:
    """The tensors that QuantizeLinear and the QLinear operators make of others than constants, in graph order.

    Those of 16, 8 and 4 bits.
    """
    index = Index(model.graph)
    found = []
    for node in model.graph.node:
        place = _zero_point_place(node)
        if place is None or _is_constant(index, node.input[0]):
            continue
        kind = element_type(index, node, place)
        if kind in FED or kind in NIBBLES:
            source = index.producer.get(node.input[0]) if is_linear(node, "QuantizeLinear") else node
            found.append(Integers(node.output[0], kind, source.op_type if source else "input"))
    return tuple(found)


def is_linear(node: NodeProto, *kinds: str) -> bool:
    """Whether the node is one of these, QuantizeLinear and DequantizeLinear, in either domain that has them."""
    return node.domain in LINEAR_DOMAINS and node.op_type in kinds


def element_type(index: Index, node: NodeProto, place: int = 2) -> int:
    """The type of the integers that a node makes: that of the zero point, its input number ``place``.

    Where it has none, what the node says, or uint8, the default of QuantizeLinear.
    """
    name = node.input[place] if len(node.input) > place else ""
    if name in index.initializers:
        return index.initializers[name].data_type
    if name and _is_constant(index, name):
        return attribute_of(index.producer[name], "value", TensorProto()).data_type
    return attribute_of(node, "output_dtype", 0) or TensorProto.UINT8


def _is_constant(index: Index, tensor: str) -> bool:
    producer = index.producer.get(tensor)
    return tensor in index.initializers or (producer is not None and is_op(producer, "Constant"))


def _zero_point_place(node: NodeProto) -> int | None:
    """Where a node has the zero point of its output among its inputs; None for nodes that make no integers."""
    if is_linear(node, "QuantizeLinear"):
        return 2
    if node.op_type in ("QLinearConv", "QLinearMatMul"):
        return 7
    if node.op_type == "QGemm":
        return 8 if len(node.input) > 8 and node.input[8] else None  # its output is float without
    return len(node.input) - 1 if node.op_type.startswith("QLinear") else None


def give_integers(model: ModelProto, integers: Iterable[Integers]) -> ModelProto:
    """A copy that gives these tensors as outputs, those of 4 bits as 8, and nothing else."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    for each in integers:
        name = each.tensor
        if each.type in NIBBLES:
            name = f"{GIVEN}{each.tensor}:bytes"
            copy.graph.node.append(helper.make_node("Cast", [each.tensor], [name], to=NIBBLES[each.type]))
        copy.graph.output.append(helper.make_tensor_value_info(name, NIBBLES.get(each.type, each.type), None))
    return copy


def open_at(model: ModelProto, integers: Iterable[Integers]) -> ModelProto:
    """``give_integers`` with every one of them also cut: its readers read a graph input, GIVEN + its name, instead."""
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
    nodes = [*casts, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def find_mismatches(model: ModelProto) -> tuple[str, ...]:
    """Tensors that a DequantizeLinear reads on another grid than the QuantizeLinear has put them on."""
    index = Index(model.graph)
    found = []
    for node in model.graph.node:
        if is_linear(node, "QuantizeLinear"):
            own = _grid(index, node)
            if any(not _equal(own, _grid(index, reader)) for reader in _dequantizers(index, node.output[0])):
                found.append(node.input[0])
    return tuple(dict.fromkeys(found))


def _dequantizers(index: Index, tensor: str) -> Iterator[NodeProto]:
    for node in index.readers(tensor):
        if is_linear(node, "DequantizeLinear") and node.input[0] == tensor:
            yield node
        elif is_op(node, *BETWEEN) and node.input[0] == tensor:
            yield from _dequantizers(index, node.output[0])


def _grid(index: Index, node: NodeProto) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Scale and zero point, None where they are computed; a zero point that is left out is 0."""
    scale = constant(index, node.input[1])
    if len(node.input) < 3 or not node.input[2]:
        return scale, np.zeros_like(scale, np.int32) if scale is not None else None
    zero_point = constant(index, node.input[2])
    return scale, None if zero_point is None else zero_point.astype(np.int32)


def _equal(one: tuple, other: tuple) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return all(np.array_equal(a.reshape(-1), b.reshape(-1)) for a, b in pairs)
