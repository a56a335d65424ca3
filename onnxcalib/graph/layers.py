"""Find the layers that can be quantized: Conv, ConvTranspose, Gemm and MatMul with a constant float32 weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cache, partial

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from ..spec import Around, LayerScheme, QuantSpec, Requirements
from .finite import is_weight
from .index import Index, attribute_of, is_op, known_constant, reads
from .ops import LAYERS
from .shapes import Shape, infer_shapes


def find_layers(
    model: ModelProto, index: Index, weight_bits: int, activation_bits: int, requirements: Requirements | None = None
) -> Iterator[LayerScheme]:
    """The quantizable layers in graph order, each with weight and input of these bits, on the target's grids."""
    needs = requirements or Requirements()
    shapes = cache(partial(infer_shapes, model))
    for node in model.graph.node:
        if not is_op(node, *LAYERS) or not _quantizable(index, node):
            continue
        axis = channel_axis(node)
        bias_add = _find_bias_add(index, node, shapes)
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        yield LayerScheme(
            name=node.name,
            op=node.op_type,
            input=node.input[0],
            weight=node.input[1],
            bias=bias if bias_add is None else next(t for t in bias_add.input if t != node.output[0]),
            output=(bias_add or node).output[0],
            bias_add=bias_add and bias_add.name,
            weight_spec=QuantSpec(
                weight_bits,
                signed=True,
                symmetric=True,
                axis=None if needs.one_weight_scale else axis,
                power_of_two=needs.power_of_two_weights,
            ),
            activation_spec=replace(needs.activation, bits=activation_bits),
            groups=attribute_of(node, "group", 1),
            channel_axis=axis,
        )


def _quantizable(index: Index, node: NodeProto) -> bool:
    """Whether weight and bias are float32 constants of the form that a layer needs, and the input is no constant."""
    weight = index.initializers.get(node.input[1])
    if weight is None or weight.data_type != TensorProto.FLOAT or node.input[0] in index.initializers:
        return False
    if 0 in weight.dims or (node.op_type == "MatMul" and len(weight.dims) != 2):
        return False
    if node.op_type == "Gemm":
        factors = attribute_of(node, "alpha", 1.0), attribute_of(node, "beta", 1.0)
        if attribute_of(node, "transA", 0) or factors != (1.0, 1.0):
            return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    bias = index.initializers.get(node.input[2])
    return bias is not None and list(bias.dims) == [count_channels(node, weight.dims)]


def _find_bias_add(index: Index, node: NodeProto, shapes: Callable[[], Mapping[str, Shape]]) -> NodeProto | None:
    """The Add that alone reads a MatMul, of a constant with one value a column and no more axes than the product."""
    made, readers = node.output[0], index.readers(node.output[0])
    if node.op_type != "MatMul" or len(readers) != 1 or not is_op(readers[0], "Add") or made in index.outputs:
        return None
    name = next((t for t in readers[0].input if t != made), "")
    bias = index.initializers.get(name)
    columns = index.initializers[node.input[1]].dims[1]
    if bias is None or not bias.dims or not bias.dims[-1] == columns == math.prod(bias.dims):
        return None
    if not is_weight(known_constant(index, name)):
        return None
    return readers[0] if len(bias.dims) == 1 or len(bias.dims) <= len(shapes().get(made, ())) else None


def channel_axis(node: NodeProto) -> int:
    """The axis of a layer's output channels (of one group, for a ConvTranspose) in its weight."""
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute_of(node, "transB", 0)) else 1


def count_channels(node: NodeProto, shape: Sequence[int]) -> int:
    """Number of a layer's output channels; ``shape``: its weight's."""
    groups = attribute_of(node, "group", 1) if node.op_type == "ConvTranspose" else 1
    return shape[channel_axis(node)] * groups


def count_macs(node: NodeProto, weight: Sequence[int], given: Sequence[int], made: Sequence[int]) -> int:
    """Multiplications of a layer in a run; the shapes of its weight, of its input and of its output."""
    if node.op_type == "ConvTranspose":  # each input is multiplied by all weights that read it
        return math.prod(given) * math.prod(weight[1:])
    # each output is a sum over the inputs of its channel
    return math.prod(made) * math.prod(weight) // max(weight[channel_axis(node)], 1)


def end_layers(
    graph: GraphProto, names: Set[str], *, owners: Set[str] = frozenset(), around: Around | None = None
) -> set[str]:
    """Names of the layers that no other layer precedes, or that no other layer follows.

    owners: nodes with layers in their bodies, which precede and follow others as layers do. around: of a body.
    """
    around = around or Around()
    first, _ = follow_layers(graph, names | owners, around.behind)
    last, _ = trace_layers(graph, names | owners, around.ahead)
    return (first | last) - owners


def layers_behind_first(graph: GraphProto, names: Set[str], around: Around | None = None) -> set[str]:
    """Names of the layers between which and the first layers there are no others; ``around``: of a body."""
    behind = (around or Around()).behind
    first, _ = follow_layers(graph, names, behind)
    given, later, found = set[str](), set(behind), set[str]()
    for node in graph.node:
        read = set(reads(node))
        if node.name in first:
            given.update(node.output)
        elif node.name in names or read & later:
            if read & given and not read & later:
                found.add(node.name)
            later.update(node.output)
        elif read & given:
            given.update(node.output)
    return found


def last_layers(graph: GraphProto, names: Set[str]) -> set[str]:
    """Names of the layers that no other layer follows."""
    return trace_layers(graph, names)[0]


def follow_layers(graph: GraphProto, names: Set[str], behind: Set[str] = frozenset()) -> tuple[set[str], set[str]]:
    """The layers that no other precedes, and the tensors behind a layer; ``behind``: inputs that are."""
    first: set[str] = set()
    seen = set(behind)
    for node in graph.node:
        preceded = not seen.isdisjoint(reads(node))
        if node.name in names and not preceded:
            first.add(node.name)
        if preceded or node.name in names:
            seen.update(t for t in node.output if t)
    return first, seen


def trace_layers(graph: GraphProto, names: Set[str], ahead: Set[str] = frozenset()) -> tuple[set[str], set[str]]:
    """The layers that no other follows, and the tensors that a layer reads in the end; ``ahead``: outputs that are."""
    last: set[str] = set()
    seen = set(ahead)
    for node in reversed(graph.node):
        followed = not seen.isdisjoint(node.output)
        if node.name in names and not followed:
            last.add(node.name)
        if followed or node.name in names:
            seen.update(reads(node))
    return last, seen
