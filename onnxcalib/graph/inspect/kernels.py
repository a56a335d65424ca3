"""The integer kernels of a graph that onnxruntime has optimized, and what they multiply on x86 without VNNI."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from onnx import GraphProto, NodeProto

from ..fusion import moves_values
from ..index import Index, attribute_of, constant, index_graphs, is_op
from ..layout import adds_pairs, kernel_rows
from ..values import read_values
from .integers import LINEAR_DOMAINS, element_type
from .quantized_layers import SIGNED, clip_ends

UINT8_MAX = 2**8 - 1
# A weight that is computed may hold the pair of integers with the largest sums.
ANY_INTEGERS = np.full((1, 2), -(2**7), np.int8)
# What onnxruntime appends to the name of a node whose layout it changes, or that it fuses with another.
SUFFIX = re.compile(r"(_token_\d+|/\w+Fusion)$")


class Operator(NamedTuple):
    """Numbers of the inputs of an operator on integers.

    weights: integers that can be constants. offsets: the zero point of each weight. activations: the zero point of what
    the weights are multiplied by; None if the operator reads floats and quantizes them to uint8 itself.
    """

    weights: tuple[int, ...]
    offsets: tuple[int, ...]
    activations: int | None


OPERATORS = {
    "QLinearConv": Operator((3,), (5,), 2),
    "QLinearMatMul": Operator((3,), (5,), 2),
    "QGemm": Operator((3,), (5,), 2),
    "ConvInteger": Operator((1,), (3,), 2),
    "MatMulInteger": Operator((1,), (3,), 2),
    "MatMulIntegerToFloat": Operator((1,), (5,), 4),
    "DynamicQuantizeMatMul": Operator((1,), (3,), None),
    "QAttention": Operator((1,), (7,), 6),
    "DynamicQuantizeLSTM": Operator((1, 2), (9, 11), None),
}


@dataclass(frozen=True)
class Kernel:
    """What an integer kernel multiplies on x86 without VNNI.

    read_rows: gives ``rows``. highest: the largest integer by which they are multiplied.
    """

    name: str
    read_rows: Callable[[], np.ndarray | None]
    highest: int

    @property
    def rows(self) -> np.ndarray | None:
        """The integers of its weight as stored, (channels, inputs), in the order in which pairs of products are added.

        None if sums are exact. They are read anew each time.
        """
        return self.read_rows()


def find_kernels(graph: GraphProto) -> tuple[Kernel, ...]:
    """The kernels of a graph as onnxruntime runs it, and of its nodes' bodies, in order; an LSTM has two."""
    found: list[Kernel] = []
    for each, index in index_graphs(graph):
        for node in each.node:
            operator = OPERATORS.get(node.op_type) if node.domain in LINEAR_DOMAINS else None
            if operator is not None:
                highest = _find_highest(index, node, operator)
                for weight, offset in zip(operator.weights, operator.offsets, strict=True):
                    read = partial(_read_rows, index, node, weight, offset)
                    found.append(Kernel(node.name or node.output[0], read, highest))
    return tuple(found)


def find_source(kernel: str, nodes: Collection[str]) -> str | None:
    """Name of the model's node of which a kernel was made; None if onnxruntime named the kernel anew."""
    name = kernel
    while name not in nodes:
        name, shortened = SUFFIX.subn("", name)
        if not shortened:
            return None
    return name


def skip_movers(index: Index, tensor: str) -> str:
    """The tensor whose values this one holds, as operators that run on integers too only moved them."""
    node = index.producer.get(tensor)
    while node is not None and (is_op(node, "Identity") or moves_values(index, node) or node.op_type == "NhwcMaxPool"):
        tensor = node.input[0]
        node = index.producer.get(tensor)
    return tensor


def _find_highest(index: Index, node: NodeProto, operator: Operator) -> int:
    """The largest integer by which weights are multiplied: the end of a Clip of integers, or of uint8."""
    if operator.activations is None:
        return UINT8_MAX
    highest = UINT8_MAX
    before = index.producer.get(skip_movers(index, node.input[0]))
    while before is not None and is_op(before, "Clip"):
        end = clip_ends(index, before)[1]
        highest = highest if end is None else min(highest, end)
        before = index.producer.get(skip_movers(index, before.input[0]))
    # A Conv pads with the zero point, which may lie outside of the Clip's ends.
    name = node.input[operator.activations] if len(node.input) > operator.activations else ""
    if not name:
        return highest
    zero_point = constant(index, name)
    return UINT8_MAX if zero_point is None else max(highest, int(zero_point.max(initial=0)))


def _read_rows(index: Index, node: NodeProto, number: int, offset: int) -> np.ndarray | None:
    """The rows of the weight that is the input of this number, with its zero point at ``offset``; None for exact sums.

    Sums are exact for unsigned weights. They are exact for signed activations too: onnxruntime's fast kernels for x86
    take these only once they are unsigned. ConvInteger is exact, as it multiplies weights and activations the other way
    round.
    """
    weight = index.initializers.get(node.input[number])
    kind = element_type(index, node, offset) if weight is None else weight.data_type
    activations = OPERATORS[node.op_type].activations
    signed = activations is not None and element_type(index, node, activations) in SIGNED
    if node.op_type == "ConvInteger" or kind not in SIGNED or signed:
        return None
    if weight is None:
        return ANY_INTEGERS
    stored = read_values(weight)
    if node.op_type == "QLinearConv":
        return kernel_rows(stored) if adds_pairs("Conv", stored.shape, attribute_of(node, "group", 1)) else None
    return kernel_rows(stored, 0 if attribute_of(node, "transB", 0) else stored.ndim - 1)
